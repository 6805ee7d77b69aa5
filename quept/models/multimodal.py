"""Where pictures become words: what a vision-language model hands to the language model inside it.

`language_inputs(model, language, inputs)` runs embeddings, vision tower and projector, and stops there. Its
answer can be read in pieces, or again and again, without looking at the pictures a second time, and on no
state that a model of transformers would keep from one call to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .clone import clone, shallow_copy


class _Reached(Exception):
    """Ends a forward pass at the language model."""

    def __init__(self, keywords: dict[str, Any]):
        self.keywords = keywords


def language_inputs(model: nn.Module, language: str, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the module `language` (`ModelLayout.language`) in the forward pass on `inputs`:
    inputs_embeds (n, tokens, hidden), attention_mask and, of a family that counts them in its own way,
    position_ids (axes, n, tokens)."""
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
