"""Questions about pictures with their answers: what the accuracy of a vision-language model is measured on.

    questions = stored_questions(elastic.questions, elastic.processor)     # those beside a model's weights
    questions = question_folder("photos", elastic.processor)               # a person's own (see pairs.py)

A question is asked in words and pictures of the model's own chat template, greedily, with what was asked and
answered before in its conversation, and has to be answered in exactly the tokens that the template writes the
answer in, then ending. Questions that begin with the same pictures are one `Group`: they are asked together,
so that the pictures are prepared and looked at once. Pictures that cannot be read are left out, their
questions counted.

A set has an `id`, a sha256 over its pictures, all tokens and how pictures are prepared. Of files it takes
names and sizes, not the content, as `images` does.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from quept.runtime.prompt import PromptError, prompt_ids
from quept.runtime.template import rendered
from quept.runtime.visual import VisualPrompt, visual_prompt

from .easy_vqa import question_type, read_questions
from .evalset import EvalSet
from .images import read_picture
from .pairs import DESCRIBE, Pair, read_pairs

BATCH = 16  # questions, at least, that one estimate follows the other by; and, at most, of one group
Turn = tuple[str, str]  # what is asked, what is answered


@dataclass(frozen=True)
class Asked:
    """One question. row: its number in the set. tokens: of the prompt, what follows the pictures. answer: the
    tokens of the answer, without the one that ends it."""

    row: int
    tokens: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Questions that begin alike: with `pictures`, by number."""

    pictures: tuple[int, ...]
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class Prepared:
    """A group with its pictures ready for the model. prompt: the first question's; seen: how many of its
    tokens all questions begin with."""

    prompt: VisualPrompt
    seen: int
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class Batch:
    """groups: those that could be read; skipped: how many questions could not."""

    groups: tuple[Prepared, ...]
    skipped: int

    @property
    def rows(self) -> Tensor:
        return torch.tensor([asked.row for group in self.groups for asked in group.asked], dtype=torch.int64)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for group in self.groups for t in group.prompt.inputs.values())


@dataclass(frozen=True, eq=False, kw_only=True)
class Questions(EvalSet):
    """kinds: the type of each question, by its number; messages: how it is asked, as `prompt_ids` takes it.
    picture: number -> the picture in RGB, ImageError where it cannot be read. groups: by batch."""

    kinds: tuple[str, ...]
    messages: tuple[tuple[Mapping, ...], ...]
    picture: Callable[[int], Image.Image]
    processor: ProcessorMixin
    groups: tuple[tuple[Group, ...], ...]

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def batches(self) -> int:
        return len(self.groups)

    def read(self, number: int) -> Batch:
        found = [(group, self._prepared(group)) for group in self.groups[number]]
        skipped = sum(len(group.asked) for group, prepared in found if prepared is None)
        return Batch(tuple(prepared for _, prepared in found if prepared), skipped)

    def _prepared(self, group: Group) -> Prepared | None:
        try:
            messages = self.messages[group.asked[0].row]
            prompt = visual_prompt(self.processor, messages, [self.picture(i) for i in group.pictures])
        except PromptError:
            raise
        except ValueError:  # it cannot be read, or is of a shape that the processor refuses
            return None
        return Prepared(prompt, len(prompt.ids) - len(group.asked[0].tokens), group.asked)


def stored_questions(path: str | Path, processor: ProcessorMixin, count: int | None = None) -> Questions:
    """What `save_questions` wrote, picture by picture; ValueError for a file that is none."""
    stored = read_questions(path)
    pixels, asked = stored.pixels, stored.questions[:count]
    try:
        kinds = [question_type(question.text) for question in asked]
    except ValueError:  # not of easy-VQA
        kinds = [answer_type(question.answer) for question in asked]
    items = [((question.picture,), ((question.text, question.answer),)) for question in asked]
    return _questions(
        stored.name,
        items,
        kinds,
        pixels.numpy().tobytes(),
        lambda i: Image.fromarray(pixels[i].numpy()),
        processor,
    )


def question_folder(folder: str | Path, processor: ProcessorMixin, count: int | None = None) -> Questions:
    """The entries of `folder`/pairs.json: every turn of a conversation is a question, asked after the turns
    before it; types are `answer_type`'s. count: only so many entries. Their order is shuffled, always the
    same way, so that the first few are a fair sample. PairsError with a sentence."""
    pairs = read_pairs(folder)
    random.Random(0).shuffle(pairs)
    pairs = pairs[:count]
    files = sorted({path for pair in pairs for path in pair.images})
    number = {path: i for i, path in enumerate(files)}
    named = [(str(path.relative_to(Path(folder).resolve())), path.stat().st_size) for path in files]
    talks = [(tuple(number[path] for path in pair.images), pair.turns) for pair in pairs]
    items = [(pictures, turns[: i + 1]) for pictures, turns in talks for i in range(len(turns))]
    kinds = [_kind_in(pair, answer) for pair in pairs for _, answer in pair.turns]
    return _questions(
        Path(folder).resolve().name,
        items,
        kinds,
        json.dumps(named).encode(),
        lambda i: read_picture(files[i]),
        processor,
    )


def answer_type(answer: str) -> str:
    """The types of VQA v2: "yes or no", "number" or "other"."""
    word = answer.strip(" .!").casefold()
    return "yes or no" if word in ("yes", "no") else "number" if word.isdecimal() else "other"


def _kind_in(pair: Pair, answer: str) -> str:
    return "caption" if pair.turns == ((DESCRIBE, answer),) else answer_type(answer)


def _questions(
    name: str,
    items: Sequence[tuple[tuple[int, ...], Sequence[Turn]]],
    kinds: Sequence[str],
    pictures: bytes,
    picture: Callable[[int], Image.Image],
    processor: ProcessorMixin,
) -> Questions:
    """items: numbers of the pictures and the conversation, whose last answer is asked for."""
    encode = _encoder(processor)
    together: dict[tuple, list[Asked]] = {}
    messages = []
    for row, (numbers, turns) in enumerate(items):
        head, tokens, answer, conversation = encode(len(numbers), tuple(turns))
        together.setdefault((numbers, head), []).append(Asked(row, tokens, answer))
        messages.append(conversation)
    groups = [
        Group(numbers, tuple(asked[i : i + BATCH]))
        for (numbers, _), asked in together.items()
        for i in range(0, len(asked), BATCH)
    ]
    tokens = [[key, [(a.row, a.tokens, a.answer) for a in asked]] for key, asked in together.items()]
    settings = json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str)
    digest = hashlib.sha256(json.dumps([tokens, settings]).encode() + hashlib.sha256(pictures).digest())
    return Questions(
        name=name,
        id=digest.hexdigest(),
        kinds=tuple(kinds),
        messages=tuple(messages),
        picture=picture,
        processor=processor,
        groups=tuple(_batches(groups)),
    )


def _batches(groups: Iterable[Group]) -> Iterable[tuple[Group, ...]]:
    """Of at least BATCH questions."""
    batch: list[Group] = []
    for group in groups:
        batch.append(group)
        if sum(len(g.asked) for g in batch) >= BATCH:
            yield tuple(batch)
            batch = []
    if batch:
        yield tuple(batch)


def _encoder(processor: ProcessorMixin) -> Callable:
    """(number of pictures, turns) -> tokens up to the last picture (one for each), those after it, those of
    the last answer, the messages. What was encoded is remembered: data ask the same questions again and
    again."""
    tokenizer = processor.tokenizer
    image = tokenizer.convert_tokens_to_ids(processor.image_token)
    answer_tokens = _answer_encoder(processor, tokenizer)

    @cache
    def encode(pictures: int, turns: tuple[Turn, ...]) -> tuple:
        *before, (question, answer) = turns
        texts = [text for turn in before for text in turn] + [question]
        messages = [
            {"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)
        ]
        shown = [{"type": "image"}] * pictures + [{"type": "text", "text": texts[0]}]
        messages[0] = messages[0] | {"content": shown}
        ids = prompt_ids(tokenizer, messages, None, processor)
        if ids.count(image) != pictures:
            raise PromptError(
                f"This model's chat template has places for {ids.count(image)} pictures; "
                f"there are {pictures}."
            )
        end = max(i for i, id in enumerate(ids) if id == image) + 1
        return tuple(ids[:end]), tuple(ids[end:]), answer_tokens(answer), tuple(messages)

    return encode


def _answer_encoder(processor: ProcessorMixin, tokenizer: PreTrainedTokenizerBase) -> Callable:
    """Answer -> its tokens as they stand in a conversation behind the prompt: with the space before them
    that a template or tokenizer puts there, without what ends them."""
    mark = "\ufdd0"
    prompt, whole = _rendered(processor, "x"), _rendered(processor, "x", mark)
    lead = whole[len(prompt) : whole.find(mark)] if whole.startswith(prompt) else ""
    tokens = partial(tokenizer.encode, add_special_tokens=False)
    before = tokens(prompt)

    @cache
    def encode(answer: str) -> tuple[int, ...]:
        whole = tokens(prompt + lead + answer.strip())
        return tuple(whole[len(before) :] if whole[: len(before)] == before else tokens(answer.strip()))

    return encode


def _rendered(processor: ProcessorMixin, *turns: str) -> str:
    """A conversation as text, up to where the next turn begins."""
    if not processor.chat_template:
        return "User: x\nAssistant:" + " ".join(("", *turns[1:]))
    messages = [
        {"role": "assistant" if i % 2 else "user", "content": [{"type": "text", "text": text}]}
        for i, text in enumerate(turns)
    ]
    return rendered(processor, messages, asking=len(turns) % 2 == 1)
