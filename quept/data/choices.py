"""Multiple-choice questions and cloze tasks for language models, packed into windows that are read at once.

An item is a list of pairs (context, continuation), one for each possible answer, and the number of the right
one; one pair alone is a cloze, whose continuation is to be said. Tokens are cut as lm-evaluation-harness does
it: context and continuation together, where the context's own tokens end; before them stands what the
tokenizer puts before every text, if anything. Spaces at the end of a context belong to the continuation. A
context too long for the model loses its beginning.

Answers share the context they have in common, and items share a window of `PACK` tokens: every token sees its
own context and its own answer up to itself, and nothing else, so that packed and one by one are the same
function. Of an answer the last token is not read, since nothing is predicted from it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
from torch import BoolTensor, LongTensor, Tensor
from transformers import PreTrainedTokenizerBase

from quept import zoo
from quept.files import read_text
from quept.runtime.prompt import text_start

from .evalset import EvalSet

PACK = 512  # tokens that are read at once
VERSION = 1
MOST_CHOICES = 64


@dataclass(frozen=True)
class Item:
    """kind: the name of its set. pairs: (context, continuation) of each answer. right: number of the one."""

    kind: str
    pairs: tuple[tuple[str, str], ...]
    right: int


@dataclass(frozen=True)
class Batch:
    """Items packed into one window of T tokens. ids, positions (T,); context, answer (T,): which context of
    the window a token stands in or behind, and in which answer, 0 in the context itself. Of the S tokens of
    all answers, target (S,) is the token, place (S,) where it is predicted, owner (S,) its answer's number
    among the C of the window. rows: numbers of the items in the set; counts: how many answers each has."""

    ids: LongTensor
    positions: LongTensor
    context: LongTensor
    answer: LongTensor
    target: LongTensor
    place: LongTensor
    owner: LongTensor
    rows: LongTensor
    counts: tuple[int, ...]
    skipped: int = 0

    @property
    def nbytes(self) -> int:
        return 8 * (4 * len(self.ids) + 3 * len(self.target))

    def visible(self) -> BoolTensor:
        """Returns (T, T): whether a token (row) sees another one (column)."""
        return (
            (self.context[:, None] == self.context)
            & ((self.answer == 0) | (self.answer == self.answer[:, None]))
            & (self.positions <= self.positions[:, None])
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Choices(EvalSet):
    """items, in order; packs: the windows that they were packed into."""

    items: tuple[Item, ...]
    packs: tuple[Batch, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def batches(self) -> int:
        return len(self.packs)

    def read(self, number: int) -> Batch:
        return self.packs[number]

    @classmethod
    def of(
        cls, items: Sequence[Item], name: str, tokenizer: PreTrainedTokenizerBase, context: int | None = None
    ) -> Choices:
        """Returns the items cut into tokens and packed; context: the model's, in tokens. ValueError where
        there are none, or an answer has no tokens."""
        if not items:
            raise ValueError(f"{name} holds no questions")
        packs = tuple(_packed([_cut(item, tokenizer, context) for item in items]))
        digest = hashlib.sha256(f"choices {VERSION} {PACK}\n".encode())
        for item in items:
            digest.update(json.dumps([item.kind, item.pairs, item.right]).encode())
        for pack in packs:
            digest.update(pack.ids.numpy().astype("<i8").tobytes())
        return cls(name=name, id=digest.hexdigest(), items=tuple(items), packs=packs)


def built_in(names: Iterable[str], most: int, progress: zoo.Progress | None = None) -> list[Item]:
    """Returns the first `most` items of the built-in sets of these names, taken in turn, so that a first part
    of them is a mixture too."""
    sets = [[Item(name, *item) for item in zoo.choices(name, progress)] for name in names]
    longest = max(map(len, sets))
    return [items[i] for i in range(longest) for items in sets if i < len(items)][:most]


def choice_file(path: Path) -> list[Item]:
    """Returns the items of a file with a JSON object a line: `{"context", "choices", "right"}`, choices as
    they continue the context, or `{"pairs": [[context, continuation], ...], "right"}`; ValueError naming
    the line that is none."""
    items = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            pairs = row["pairs"] if "pairs" in row else [[row["context"], said] for said in row["choices"]]
            pairs = tuple((context, said) for context, said in pairs)
            sound = (
                all(isinstance(text, str) for pair in pairs for text in pair) and len(pairs) <= MOST_CHOICES
            )
            if not sound or type(row["right"]) is not int or not 0 <= row["right"] < len(pairs):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'line {number} of {path.name} is no question: it needs "context", a list "choices" of at '
                f'most {MOST_CHOICES} texts that continue it, and "right", the number of one of them from 0'
            ) from None
        items.append(Item(path.stem, pairs, row["right"]))
    return items


Cut = list[tuple[list[int], list[list[int]]]]  # contexts with the answers behind them, in tokens


def _cut(item: Item, tokenizer: PreTrainedTokenizerBase, most: int | None) -> Cut:
    """The item in tokens; answers with the same context one after the other share it."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    cut: Cut = []
    before, start = None, text_start(tokenizer)
    for context, said in item.pairs:
        kept = context.rstrip()
        said = context[len(kept) :] + said
        head = ids(kept) or ([] if start else [tokenizer.eos_token_id or 0])  # as the harness has it
        tail = ids(kept + said)[len(ids(kept)) :]
        if not tail:
            raise ValueError(f"an answer of {item.kind} is empty: {said!r} behind {kept[-40:]!r}")
        if kept != before:
            cut.append((head, []))
        before = kept
        cut[-1][1].append(tail)
    most = sys.maxsize if most is None else most - len(start)
    return [(start + head[-max(1, most + 1 - max(map(len, tails))) :], tails) for head, tails in cut]


def _packed(items: Sequence[Cut]) -> Iterable[Batch]:
    """The items in windows of at most PACK tokens each; a longer item has a window of its own."""
    lengths = [sum(len(head) + sum(len(t) - 1 for t in tails) for head, tails in item) for item in items]
    first = 0
    while first < len(items):
        sums = list(accumulate(lengths[first:], initial=0))
        count = max(1, next((i for i, total in enumerate(sums) if total > PACK), len(sums)) - 1)
        yield _pack(items[first : first + count], first)
        first += count


def _pack(items: Sequence[Cut], first: int) -> Batch:
    tokens: list[tuple[int, int, int, int]] = []  # id, position, context, answer
    said: list[tuple[int, int, int]] = []  # target, place, owner
    contexts = answers = 0
    for item in items:
        for head, tails in item:
            tokens += [(token, i, contexts, 0) for i, token in enumerate(head)]
            last = len(tokens) - 1
            for branch, tail in enumerate(tails, 1):
                places = [last, *range(len(tokens), len(tokens) + len(tail) - 1)]
                tokens += [(token, len(head) + i, contexts, branch) for i, token in enumerate(tail[:-1])]
                said += [(token, place, answers) for token, place in zip(tail, places, strict=True)]
                answers += 1
            contexts += 1
    rows = torch.arange(first, first + len(items))
    counts = tuple(sum(len(tails) for _, tails in item) for item in items)
    return Batch(*_columns(tokens), *_columns(said), rows, counts)


def _columns(rows: list[tuple[int, ...]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).T
