"""All conversations about one picture in one sequence, so that training pays for the picture once.

    <bos> <image> x n | <user> ... <assistant> ... <eos> <user> ... <eos> | <user> ... <eos> | padding

A conversation sees the picture and what came before in itself, and its positions go on from the picture, as
if the others were not there: its logits are those of the sequence it would be alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from processor import ASSISTANT, BOS, EOS, IMAGE, PAD, SPECIAL, USER
from torch import LongTensor, Tensor

from quept.data.easy_vqa import Question

IGNORED = -100
Turn = tuple[list[int], list[int]]  # the tokens of <user> ... <assistant>, those of ... <eos>
Encode = Callable[[Question], Turn]


@dataclass(frozen=True, eq=False)
class Packed:
    """Sequences (B, L) for B pictures. tokens, positions: what the model takes. mask (B, 1, L, L): who sees
    whom. targets: the token that is to follow where the model speaks, IGNORED elsewhere. question: the number
    of the question that a target belongs to, counted through the batch."""

    tokens: LongTensor
    positions: LongTensor
    mask: Tensor
    targets: LongTensor
    question: LongTensor


def encoder(tokenizer) -> Encode:
    """Question -> its turn, remembered, since the data ask the same few questions again and again."""
    seen: dict[tuple[str, str], Turn] = {}

    def encode(question: Question) -> Turn:
        key = (question.text, question.answer)
        if key not in seen:
            asked, answered = (tokenizer.encode(part, add_special_tokens=False) for part in key)
            user, assistant, eos = (SPECIAL.index(token) for token in (USER, ASSISTANT, EOS))
            seen[key] = ([user, *asked, assistant], [*answered, eos])
        return seen[key]

    return encode


def pack(pictures: Sequence[Sequence[Sequence[Question]]], image_tokens: int, encode: Encode) -> Packed:
    """pictures: for each picture the conversations about it, each a sequence of questions."""
    start = [SPECIAL.index(BOS)] + [SPECIAL.index(IMAGE)] * image_tokens
    sequences, number = [], 0
    for conversations in pictures:
        rows = [(token, at, 0, IGNORED, -1) for at, token in enumerate(start)]
        for group, conversation in enumerate(conversations, 1):
            at = len(start)
            for question in conversation:
                asked, answered = encode(question)
                turn = [*asked, *answered]
                follows = [*turn[1:], IGNORED]
                for i, token in enumerate(turn):
                    speaks = len(asked) - 1 <= i < len(turn) - 1
                    target = (follows[i], number) if speaks else (IGNORED, -1)
                    rows.append((token, at + i, group, *target))
                at, number = at + len(turn), number + 1
        sequences.append(rows)
    longest, padding = max(map(len, sequences)), (SPECIAL.index(PAD), 0, -1, IGNORED, -1)
    packed = torch.tensor([rows + [padding] * (longest - len(rows)) for rows in sequences])
    tokens, positions, group, targets, question = packed.unbind(-1)
    own = (group[:, None, :] == 0) | (group[:, :, None] == group[:, None, :])
    mask = (own & torch.ones(longest, longest, dtype=torch.bool).tril())[:, None]
    return Packed(tokens, positions, mask, targets, question)
