"""A conversation about pictures -> what a vision-language model reads, and reading it in pieces.

`visual_prompt(processor, messages, pictures)` puts the tokens of each picture where the chat template wants
them and prepares the pixels, as the model's own processor does both. `VisualReader` looks at the pictures
once, in the first step, and then reads the prompt and each new token like any other text: positions are
counted here, so that nothing is left behind in a view that others use too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin
from transformers.cache_utils import Cache

from quept.models import FAMILIES
from quept.models.layout import family_of
from quept.models.multimodal import language_inputs
from quept.models.strips import check_shape

from .prompt import PromptError, prompt_ids


@dataclass(frozen=True)
class VisualPrompt:
    """ids: the tokens, as many image tokens as each picture takes. keys: the same, with numbers below zero
    that stand for the content of a picture in the place of its tokens: two prompts that agree in their first
    keys mean the same there. inputs: arguments of the model's forward, one row."""

    ids: list[int]
    keys: list[int]
    inputs: Mapping[str, Tensor]


def visual_prompt(
    processor: ProcessorMixin,
    messages: Sequence[Mapping],
    pictures: Sequence[Image.Image],
    system: str | None = None,
    answered: bool = False,
    seen: Callable[[], dict[str, Tensor]] | None = None,
) -> VisualPrompt:
    """messages, answered: as `prompt_ids` takes them; pictures: those they speak of, in order, RGB; seen:
    gives what `shown` made of them, where several prompts are about the same. PromptError with a sentence;
    ValueError for another number of pictures than the messages hold, and for a strip (see `check_shape`)."""
    tokenizer = processor.tokenizer
    token = tokenizer.convert_tokens_to_ids(processor.image_token)
    plain = prompt_ids(tokenizer, messages, system, processor, answered)
    places = plain.count(token)
    if places != len(pictures):
        held = sum(_pictures_in(message) for message in messages)
        if held != len(pictures):
            raise ValueError(f"{len(pictures)} pictures were given for messages with {held}")
        raise PromptError(
            f"This model's chat template has places for {places} pictures; there are {len(pictures)}."
        )
    seen = seen or (lambda: shown(processor, pictures))
    together = seen() if pictures else {}
    extra = {name: together[name][0].tolist() for name in _by_token(together)}
    inputs = {name: t for name, t in together.items() if name not in extra}
    stretches = _parted(extra.pop("input_ids", []), tokenizer.eos_token_id)
    ids, keys, values = [], [], {name: [] for name in extra}
    following = iter(zip(stretches, pictures, strict=True))
    for id in plain:
        if id == token:
            (start, end), picture = next(following)
            ids += together["input_ids"][0, start:end].tolist()
            keys += [_identity(picture)] * (end - start)
        else:
            start = end = 0
            ids.append(id)
            keys.append(id)
        for name, every in extra.items():
            values[name] += every[start:end] or [0]
    inputs |= {name: torch.tensor([every]) for name, every in values.items()}
    inputs |= {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    return VisualPrompt(ids, keys, inputs)


class VisualReader:
    """Reads a prompt and what follows it into a cache; see `quept.runtime.generate` for what a step is."""

    def __init__(self, view: PreTrainedModel, prompt: VisualPrompt):
        self._view, self._prompt = view, prompt
        self._family = FAMILIES[family_of(view.config.model_type)]
        self._embeds: Tensor | None = None
        self._positions: Tensor | None = None

    @torch.inference_mode()
    def __call__(self, cache: Cache, chunk: list[int], start: int) -> Tensor:
        """The tokens of the prompt from `start`, as many as the chunk has, or, behind the prompt, those of
        the chunk -> logits (vocabulary,) after the last of them, float32 on the CPU."""
        if self._embeds is None:
            self._look()
        view, end = self._view, start + len(chunk)
        if start < len(self._prompt.ids):
            embeds = self._embeds[:, start:end]
            positions = None if self._positions is None else self._positions[..., start:end]
        else:
            words = view.get_input_embeddings()
            embeds = words(torch.tensor([chunk], device=view.device))
            positions = self._positions
            if positions is not None:  # of words: one after the other, on all axes
                steps = torch.arange(start - len(self._prompt.ids), end - len(self._prompt.ids))
                last = positions.amax((0, 2), keepdim=True)
                positions = (last + 1 + steps.to(last.device)).expand(len(positions), 1, -1)
        language = view.get_submodule(self._family.language)
        hidden = language(
            inputs_embeds=embeds, position_ids=positions, cache=cache, use_cache=True
        ).last_hidden_state
        return view.get_submodule(self._family.head)(hidden[0, -1]).float().cpu()

    def _look(self) -> None:
        view = self._view
        inputs = {
            name: t.to(view.device, view.dtype if t.is_floating_point() else None)
            for name, t in self._prompt.inputs.items()
        }
        found = language_inputs(view, self._family.language, inputs)
        self._embeds, self._positions = found["inputs_embeds"], found.get("position_ids")


def _pictures_in(message: Mapping) -> int:
    content = message["content"]
    return 0 if isinstance(content, str) else sum(part["type"] == "image" for part in content)


def shown(processor: ProcessorMixin, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
    """What the processor makes of these pictures and no words, end tokens between them. All together: how
    many tokens one takes can depend on how many there are."""
    size = dict(processor.image_processor.size or {})
    shorter = 1 if size.get("longest_edge") else size.get("shortest_edge") or 1
    for picture in pictures:
        check_shape(picture.size, shorter)
    between = processor.tokenizer.eos_token
    found = processor(
        text=[between.join([processor.image_token] * len(pictures))],
        images=[list(pictures)],
        add_special_tokens=False,
        return_tensors="pt",
    )
    return {name: t for name, t in found.items() if name != "attention_mask"}


def _by_token(seen: Mapping[str, Tensor]) -> list[str]:
    """The inputs that have a value for every token."""
    return [name for name, t in seen.items() if t.shape == seen["input_ids"].shape]


def _parted(ids: Sequence[int], between: int) -> list[tuple[int, int]]:
    """(start, end) of every stretch between two of `between`."""
    ends = [i for i, id in enumerate(ids) if id == between]
    return list(zip([0, *(i + 1 for i in ends)], [*ends, len(ids)], strict=True)) if ids else []


def _identity(picture: Image.Image) -> int:
    """A number below zero for its content."""
    digest = hashlib.sha256(f"{picture.mode} {picture.size}".encode() + picture.tobytes()).digest()
    return -1 - int.from_bytes(digest[:8], "big")
