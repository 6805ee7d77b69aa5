"""A conversation about pictures -> what a vision-language model reads, and reading it in pieces.

`visual_prompt(processor, messages, pictures)` puts the tokens of each picture where the chat template wants
them and prepares the pixels, as the model's own processor does both. `VisualReader` looks at the pictures
once, in the first step, and then reads the prompt and each new token like any other text, parted only where
the family allows it (see `Entered`): positions are counted here, so that nothing is left behind in a view
that others use too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin
from transformers.cache_utils import Cache

from quept.models import FAMILIES
from quept.models.behind import head_of
from quept.models.layout import family_of
from quept.models.multimodal import Entered, language_inputs
from quept.models.strips import check_shape

from .prompt import PromptError, prompt_ids

NOT_READ = ("attention_mask", "labels")  # what a processor says of tokens besides, and we know better


@dataclass(frozen=True)
class VisualPrompt:
    """ids: the tokens, as many image tokens as each picture takes. keys: the same, with numbers below zero
    that stand for the content of a picture in the place of its tokens: two prompts that agree in their first
    keys mean the same there. inputs: arguments of the model's forward, one row."""

    ids: list[int]
    keys: list[int]
    inputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class Shown:
    """What a processor makes of pictures. texts: what is written in the place of each; tokens: how many of a
    text stand for what the picture shows. inputs: arguments of the forward that tell of no token; by_token:
    of those that do, the values at these tokens, picture after picture."""

    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    inputs: Mapping[str, Tensor]
    by_token: Mapping[str, Tensor]


def visual_prompt(
    processor: ProcessorMixin,
    messages: Sequence[Mapping],
    pictures: Sequence[Image.Image],
    system: str | None = None,
    answered: bool = False,
    seen: Callable[[], Shown] | None = None,
) -> VisualPrompt:
    """messages, answered: as `prompt_ids` takes them; pictures: those they speak of, in order, RGB; seen:
    gives what `shown` made of them, where several prompts are about the same. PromptError with a sentence;
    ValueError for another number of pictures than the messages hold, and for a strip (see `check_shape`)."""
    tokenizer, token, places = processor.tokenizer, processor.image_token, 0
    seen = seen or (lambda: shown(processor, pictures))
    found = seen() if pictures else Shown((), (), {}, {})

    def put(piece: str) -> str:
        nonlocal places
        between = piece.split(token)
        texts = [*found.texts[places : places + len(between) - 1]]
        places += len(between) - 1
        texts += [token] * (len(between) - 1 - len(texts))
        return between[0] + "".join(a + b for a, b in zip(texts, between[1:], strict=True))

    ids = prompt_ids(tokenizer, messages, system, processor, answered, put)
    if places != len(pictures):
        held = sum(_pictures_in(message) for message in messages)
        if held != len(pictures):
            raise ValueError(f"{len(pictures)} pictures were given for messages with {held}")
        raise PromptError(
            f"This model's chat template has places for {places} pictures; there are {len(pictures)}."
        )
    at = [i for i, id in enumerate(ids) if id in placeholders(processor)]
    identities = [
        i for i, count in zip(map(_identity, pictures), found.tokens, strict=True) for _ in range(count)
    ]
    keys = list(ids)
    for place, identity in zip(at, identities, strict=True):
        keys[place] = identity
    row = torch.tensor([ids])
    inputs = {**found.inputs, "input_ids": row, "attention_mask": torch.ones_like(row)}
    for name, values in found.by_token.items():
        inputs[name] = torch.zeros_like(row)
        inputs[name][0, at] = values
    return VisualPrompt(ids, keys, inputs)


class VisualReader:
    """Reads a prompt and what follows it into a cache; see `quept.runtime.generate` for what a step is."""

    def __init__(self, view: PreTrainedModel, prompt: VisualPrompt):
        self._view, self._prompt = view, prompt
        self._language = FAMILIES[family_of(view.config.model_type)].language
        self._head = head_of(view, self._language)

    def cut(self, at: int) -> int:
        """The first place from `at` on where the prompt may be parted."""
        return self._entered.cut(at)

    @torch.inference_mode()
    def __call__(self, cache: Cache, chunk: list[int], start: int) -> Tensor:
        """The tokens of the prompt from `start`, as many as the chunk has, or, behind the prompt, those of
        the chunk -> logits (vocabulary,) after the last of them, float32 on the CPU."""
        if start < len(self._prompt.ids):
            given = self._entered.part(start, start + len(chunk), cache)
        else:
            words = self._view.get_input_embeddings()(torch.tensor([chunk], device=self._view.device))
            given = self._entered.behind(words, start)
        language = self._view.get_submodule(self._language)
        hidden = language(**given, cache=cache, use_cache=True).last_hidden_state
        return self._head(hidden[0, -1:])[0].float().cpu()

    @cached_property
    def _entered(self) -> Entered:
        """The pictures, looked at."""
        view = self._view
        inputs = {
            name: t.to(view.device, view.dtype if t.is_floating_point() else None)
            for name, t in self._prompt.inputs.items()
        }
        with torch.inference_mode():
            return Entered(language_inputs(view, self._language, inputs), view.config)


def _pictures_in(message: Mapping) -> int:
    content = message["content"]
    return 0 if isinstance(content, str) else sum(part["type"] == "image" for part in content)


def shown(processor: ProcessorMixin, pictures: Sequence[Image.Image]) -> Shown:
    """What the processor makes of these pictures and no words. All together: how many tokens one takes can
    depend on how many there are."""
    size = dict(processor.image_processor.size or {})
    shorter = 1 if size.get("longest_edge") else size.get("shortest_edge") or 1
    for picture in pictures:
        check_shape(picture.size, shorter)
    tokenizer = processor.tokenizer
    found = dict(
        processor(
            text=[tokenizer.eos_token.join([processor.image_token] * len(pictures))],
            images=[list(pictures)],
            add_special_tokens=False,
            return_tensors="pt",
            return_text_replacement_offsets=True,
        )
    )
    texts = tuple(put["replacement"] for put in found.pop("text_replacement_offsets")[0])
    row, at = found.pop("input_ids"), placeholders(processor)
    counts = tuple(sum(id in at for id in tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    here = torch.isin(row, torch.tensor(at))
    by_token = {name: t[here] for name, t in found.items() if t.shape == row.shape and name not in NOT_READ}
    inputs = {name: t for name, t in found.items() if name not in by_token and name not in NOT_READ}
    return Shown(texts, counts, inputs, by_token)


def placeholders(processor: ProcessorMixin) -> list[int]:
    """The tokens in whose places the model puts what it sees."""
    found = [id for id in processor.image_token_ids if id is not None]
    return found or [processor.tokenizer.convert_tokens_to_ids(processor.image_token)]


def _identity(picture: Image.Image) -> int:
    """A number below zero for its content."""
    digest = hashlib.sha256(f"{picture.mode} {picture.size}".encode() + picture.tobytes()).digest()
    return -1 - int.from_bytes(digest[:8], "big")
