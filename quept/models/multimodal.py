"""Where pictures become words: what a vision-language model hands to the language model inside it.

`language_inputs(model, language, inputs)` runs embeddings, vision tower and projector, and stops there. Its
answer can be read in pieces, or again and again, without looking at the pictures a second time, and on no
state that a model of transformers would keep from one call to the next.

    entered = Entered(language_inputs(model, language, inputs), config)
    model.get_submodule(language)(**entered.part(0, entered.cut(64), cache), cache=cache, use_cache=True)

A prompt may be parted only where no token before looks at one behind. The tokens of a picture see one another
both ways in some families (Gemma 3), those of the whole prompt in others (PaliGemma): that is read off the
masks that the model makes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.cache_utils import Cache

from .clone import clone, shallow_copy


class _Reached(Exception):
    """Ends a forward pass at the language model."""

    def __init__(self, keywords: dict[str, Any]):
        self.keywords = keywords


def language_inputs(model: nn.Module, language: str, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the module `language` (`ModelLayout.language`) in the forward pass on `inputs`:
    inputs_embeds (n, tokens, hidden), attention_mask as the family makes it and, of a family that counts them
    in its own way, position_ids ([axes,] n, tokens). Where it is told at several depths what the vision tower
    saw (DeepStack), visual_pos_masks (n, tokens) bool says where, and deepstack_visual_embeds what."""
    stand_in = shallow_copy(model.get_submodule(language))
    stand_in.forward = _reached
    try:
        clone(model, {language: stand_in})(**inputs, use_cache=False)
    except _Reached as reached:
        keywords = reached.keywords
    else:
        raise RuntimeError(f"the model ran without calling {language}")
    return {key: value for key, value in keywords.items() if value is not None and key != "use_cache"}


def _reached(*positional: Any, **keywords: Any) -> None:
    if positional:
        raise RuntimeError("the language model was called with positional arguments")
    raise _Reached(keywords)


class Entered:
    """What a language model reads of one prompt, one row, a piece at a time. found: as `language_inputs`
    gives it; config: of the whole model."""

    def __init__(self, found: Mapping[str, Any], config: PretrainedConfig):
        self.embeds: Tensor = found["inputs_embeds"]
        self.tokens = self.embeds.shape[1]
        self._positions: Tensor | None = found.get("position_ids")
        self._marks: Tensor | None = found.get("visual_pos_masks")
        self._depths: list[Tensor] = found.get("deepstack_visual_embeds") or []
        text = config.get_text_config()
        kinds = getattr(text, "layer_types", None) or [""]
        masks = found.get("attention_mask")
        masks = masks if isinstance(masks, dict) else {kinds[0]: masks}
        given = {kind: mask for kind, mask in masks.items() if mask is not None and mask.ndim == 4}
        places = torch.arange(self.tokens, device=self.embeds.device)
        reach = torch.stack([places, *(_reach(mask[0, 0]) for mask in given.values())]).amax(0)
        if not given and getattr(text, "use_bidirectional_attention", False):  # no mask: all see all
            reach = torch.full_like(places, self.tokens - 1)
        self._cuts = (1 + (reach == places).nonzero()[:, 0]).tolist()
        ahead = len(self._cuts) < self.tokens  # else the language model makes its own masks
        self._masks = {kind: (kinds.index(kind), mask) for kind, mask in given.items() if ahead}
        self._one = not isinstance(found.get("attention_mask"), dict)

    def cut(self, at: int) -> int:
        """Returns the first place from `at` on where the prompt may be parted."""
        return at if at >= self.tokens else self._cuts[bisect_left(self._cuts, at)]

    def part(self, start: int, end: int, cache: Cache) -> dict[str, Any]:
        """Returns the arguments for the tokens of the prompt from start to end; those before are in the
        cache."""
        given: dict[str, Any] = {"inputs_embeds": self.embeds[:, start:end]}
        if self._positions is not None:
            given["position_ids"] = self._positions[..., start:end]
        if self._masks:
            found = {}
            for kind, (layer, mask) in self._masks.items():
                held, first = cache.get_mask_sizes(end - start, layer)
                found[kind] = mask[..., start:end, first : first + held]
            given["attention_mask"] = next(iter(found.values())) if self._one else found
        if self._marks is not None and self._marks[:, start:end].any():
            before, behind = (int(self._marks[:, :at].sum()) for at in (start, end))
            given["visual_pos_masks"] = self._marks[:, start:end]
            given["deepstack_visual_embeds"] = [depth[before:behind] for depth in self._depths]
        return given

    def behind(self, embeds: Tensor, start: int) -> dict[str, Any]:
        """Returns the arguments for words (rows, n, hidden) behind the first `start` tokens, `start` of which
        may lie behind the prompt too. Words are counted one after the other, on all axes."""
        if self._positions is None:
            return {"inputs_embeds": embeds}
        held = self._positions[..., :start]
        steps = torch.arange(embeds.shape[1], device=held.device)
        positions = held.max() + 1 + start - held.shape[-1] + steps
        return {
            "inputs_embeds": embeds,
            "position_ids": positions.expand(*held.shape[:-2], *embeds.shape[:2]),
        }


def _reach(mask: Tensor) -> Tensor:
    """mask (tokens, tokens), bool or an addend -> the last token that any up to each sees, (tokens,)."""
    visible = mask if mask.dtype == torch.bool else mask == 0
    last = (visible * torch.arange(mask.shape[-1], device=mask.device)).amax(-1)
    return last.cummax(0).values
