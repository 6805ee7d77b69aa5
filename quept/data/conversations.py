"""Conversations about pictures to calibrate on, as a vision-language model reads them.

They come from a folder with pairs.json, whose form `quept.data.pairs` describes, or are the training
questions of easy-VQA, up to three about one picture. Every picture is fitted into the same square, grey where
it has another shape, so that all take the same number of tokens. The model's own chat template and processor
do the rest; a conversation that is longer than it may be loses its end.

A sample (see ragged) also has a LOSS_MASK, (1, tokens) bool: set where the next token is one of an answer, or
what ends it.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import ProcessorMixin

from quept.data.images import ImageError, read_picture
from quept.data.pairs import FILE, read_pairs
from quept.models import LoadedModel
from quept.models.context import context_length
from quept.runtime.prompt import PromptError, prompt_ids
from quept.runtime.visual import visual_prompt

from .base import Data, DataError, FolderSource, Progress, Wanted
from .ragged import LOSS_MASK, TOKENS, Ragged

Turns = Sequence[tuple[str, str]]  # (what the user says, what is answered)
BUILT_IN = "easy-vqa"
TURNS = 3  # of a conversation about a picture of the built-in set: its model has learned on no longer ones
GREY = (127, 127, 127)


@dataclass(frozen=True)
class Conversations(FolderSource):
    """`count` conversations about pictures of "easy-vqa" or a folder with pairs.json. Pictures are fitted
    into a square of `size` pixels, and what is longer than `context` tokens is cut. Both stages read the
    same."""

    noun, models = "conversations about pictures", ("vision-language",)

    context: int
    size: int = 384

    def identity(self) -> list[str]:
        """Of a folder a hash of pairs.json and of the sizes of its pictures."""
        if self.source == BUILT_IN:
            return [self.source]
        sizes = [[image.stat().st_size for image in pair.images] for pair in read_pairs(self.source)]
        content = (Path(self.source) / FILE).read_bytes() + json.dumps(sizes).encode()
        return [hashlib.sha256(content).hexdigest()]

    def read(self, loaded: LoadedModel, wanted: Wanted, report: Progress) -> Data:
        report("reading the calibration pairs", None)
        fitting = replace(self, context=min(self.context, context_length(loaded.model) or self.context))
        held_out, training = conversations(fitting, loaded.processor, wanted.held_out, wanted.seed, report)
        return Data(training.of_one_length(), training, held_out)


def conversations(
    pairs: Conversations, processor: ProcessorMixin, held_out: int, seed: int, report: Progress
) -> tuple[Ragged, Ragged]:
    """(`held_out` samples, at most `pairs.count` others about other pictures), drawn without repetition in an
    order that follows from the seed. What cannot be read is passed over.

    Raises DataError for too few, ValueError for a source that is none or a context that has no room for the
    pictures."""
    everything, picture = _source(pairs.source, seed, report)
    random.Random(seed).shuffle(everything)
    kept, training, seen, passed_over = [], [], set(), []
    for images, turns in everything:
        if len(training) == pairs.count:
            break
        if len(kept) == held_out and seen & set(images):
            continue
        try:
            pictures = [ImageOps.pad(picture(image), (pairs.size,) * 2, color=GREY) for image in images]
            found = sample(processor, pictures, turns, pairs.context)
        except (ImageError, PromptError) as error:
            passed_over.append(str(error))
            continue
        if len(kept) < held_out:
            kept.append(found)
            seen |= set(images)
        else:
            training.append(found)
    why = f"passed over: {len(passed_over)}, the first since {passed_over[0]}" if passed_over else ""
    if not training:
        raise DataError(
            f"{pairs.source} has too few conversations to hold {held_out} with their pictures out of them: "
            f"give more{why and f' ({why})'}"
        )
    if passed_over:
        report(f"conversations {why}", None)
    tokenizer = processor.tokenizer
    padding = next(id for id in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if id is not None)
    return Ragged(kept, padding), Ragged(training, padding)


def sample(
    processor: ProcessorMixin, pictures: Sequence[Image.Image], turns: Turns, context: int
) -> dict[str, Tensor]:
    """One conversation: the arguments of the model's forward, and LOSS_MASK. Its pictures come with the first
    message. PromptError where it cannot be put to the model or no answer begins within `context` tokens;
    ValueError where its pictures do not end there."""
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    shown = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": messages[0]["content"]}]
    messages[0] = messages[0] | {"content": shown}
    prompt = visual_prompt(processor, messages, pictures, answered=True)
    looks = 1 + max((at for at, key in enumerate(prompt.keys) if key < 0), default=-1)
    if looks > context:
        raise ValueError(
            f"the pictures of a conversation reach up to token {looks:,} and context is {context:,}: raise "
            "context in the recipe's [data], or lower size for a model that reads pictures as they come"
        )
    loss_mask = torch.zeros(1, len(prompt.ids), dtype=torch.bool)
    inputs = {**prompt.inputs, LOSS_MASK: loss_mask}
    for start, end in _answers(processor, messages):
        loss_mask[0, len(prompt.ids) + start - 1 : len(prompt.ids) + end - 1] = True
        if "labels" in processor.model_input_names:  # it tells an answer from the prompt before by types
            inputs["token_type_ids"][0, len(prompt.ids) + start :] = 1
    shape = inputs[TOKENS].shape
    inputs = {name: t[:, :context] if t.shape == shape else t for name, t in inputs.items()}
    if not inputs[LOSS_MASK].any():
        raise PromptError(f"no answer begins within {context:,} tokens")
    return inputs


def _answers(processor: ProcessorMixin, messages: Sequence[dict]) -> list[tuple[int, int]]:
    """(start, end) of what the assistant says, counted from the end of the conversation (below 0): that is
    the same whatever number of tokens the pictures before it take."""

    def ids_of(count: int, answered: bool) -> list[int]:
        return prompt_ids(processor.tokenizer, messages[:count], None, processor, answered)

    whole = ids_of(len(messages), True)
    return [
        tuple(_agreeing(whole, part) - len(whole) for part in (ids_of(n, False), ids_of(n + 1, True)))
        for n in range(1, len(messages), 2)
    ]


def _agreeing(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of their first tokens are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _source(
    source: str, seed: int, report: Progress
) -> tuple[list[tuple[tuple[Hashable, ...], Turns]], Callable[[Hashable], Image.Image]]:
    """(conversations as their pictures' names and turns, what reads a picture by its name)."""
    if source != BUILT_IN:
        return [(pair.images, pair.turns) for pair in read_pairs(source)], read_picture
    from quept.data.easy_vqa import easy_vqa

    data, draw, found = easy_vqa("train", progress=report), random.Random(seed), []
    for row, asked in enumerate(data.by_picture()):
        turns = [(q.text, q.answer) for q in draw.sample(asked, len(asked))]
        found += [((row,), turns[i : i + TURNS]) for i in range(0, len(turns), TURNS)]
    return found, lambda row: Image.fromarray(data.pixels[row].numpy())
