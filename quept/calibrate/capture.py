"""What a model hands to one of its blocks for one batch: hidden states, and every other argument.

The model's own forward runs with stand-ins for its blocks. Those before the one asked for pass on what they
get; the one asked for raises with what it was called with. Only embeddings, masks and positions are computed,
so this is cheap enough to be done afresh for every batch and every block, and nothing is kept: no batch is
run with another's mask, and a model whose blocks get different masks (some with a sliding window) is served
as well. No family's forward is spelt out here.

A vision-language model would look at its pictures each time. There `entered` does that once for a batch, and
what it gives, the arguments of the language model, is what calls are made of from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quept.models import ModelLayout
from quept.models.clone import clone, shallow_copy
from quept.models.multimodal import language_inputs

from .logits import arguments, logits_of

EMBEDDINGS = "inputs_embeds"  # of words and pictures, what a language model is entered with


@dataclass(frozen=True)
class Call:
    """One call of a block: its hidden states (batch, tokens, hidden), or (batch, height, width, hidden) of
    windowed pictures, and everything that came with them."""

    hidden: Tensor
    rest: tuple
    keywords: Mapping[str, Any]

    def run(self, block: nn.Module, hidden: Tensor | None = None) -> Tensor:
        """What `block` makes of these hidden states (None: those of the call), with the call's other
        arguments; of a block that returns a tuple, its first entry."""
        out = block(self.hidden if hidden is None else hidden, *self.rest, **self.keywords)
        return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def entered(model: nn.Module, layout: ModelLayout, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """What the part of the model that holds the decoder blocks reads in the forward pass on `inputs`:
    embeddings of words and pictures, masks and positions of a vision-language model, of any other the inputs
    themselves."""
    if not layout.language:
        return inputs
    return language_inputs(model, layout.language, arguments(inputs))


class Calls:
    """The calls of a model's decoder blocks. model: one of this layout; example: as `entered` gives it,
    on which the form of what its blocks return is seen (a tensor, or a tuple of one)."""

    def __init__(self, model: nn.Module, layout: ModelLayout, example: Mapping[str, Any]):
        self._model, self._layout, self._tuples = model, layout, False
        first = self.of(0, example)
        with torch.no_grad():
            block = model.get_submodule(layout.decoder_blocks[0].name)
            out = block(first.hidden, *first.rest, **first.keywords)
        self._tuples = isinstance(out, tuple)

    @torch.no_grad()
    def of(self, index: int, inputs: Mapping[str, Any], stream: Tensor | None = None) -> Call:
        """The call of block `index` in the forward pass on `inputs`, as `entered` gives them. stream: what
        the block before it gives, of which the model makes the hidden states (before the first one: they
        themselves); without one the hidden states are those of the first block."""
        names = [block.name for block in self._layout.decoder_blocks[: index + 1]]
        stand_ins = {name: shallow_copy(self._model.get_submodule(name)) for name in names}
        for stand_in in stand_ins.values():
            stand_in.forward = self._pass_on
        if index and stream is not None:
            stand_ins[names[index - 1]].forward = partial(self._give, stream)
        stand_ins[names[index]].forward = _reached
        try:
            entry = self._layout.language
            logits_of(clone(self._model.get_submodule(entry), stand_ins, entry), inputs)
        except _Reached as reached:
            call = reached.call
        else:
            raise RuntimeError(f"the model ran without calling {names[index]}")
        return call if index or stream is None else replace(call, hidden=stream.to(call.hidden))

    def _give(self, stream: Tensor, hidden_states: Tensor, *rest: Any, **keywords: Any) -> Any:
        return self._pass_on(stream.to(hidden_states))

    def _pass_on(self, hidden_states: Tensor, *rest: Any, **keywords: Any) -> Tensor | tuple[Tensor]:
        return (hidden_states,) if self._tuples else hidden_states


class _Reached(Exception):
    """Ends a forward pass at the block that was asked for."""

    def __init__(self, call: Call):
        self.call = call


def _reached(hidden_states: Tensor, *rest: Any, **keywords: Any) -> None:
    raise _Reached(Call(hidden_states, rest, keywords))
