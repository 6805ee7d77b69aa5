"""Layers that multiply only what a change before them did to their input.

    y' = y + (x' - x) W^T,    x and y: of the pass at the base plan

x' - x is small, so its product may be rough: in bfloat16, which some processors multiply at twice the speed
of float32, it is off by some 0.3 % of the change, not of y, and by another amount at every position and
output, which the mean over a window evens out: of SmolLM2, 512 tokens, the KL of a changed layer moves by
0.1 % (root mean square; 0.5 % at most of 60), in 0.68 of the time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from quept.plan import FULL
from quept.runtime.backends import BoundLinear
from quept.runtime.model import ElasticModel, compute_dtype

LEAST = 10_000_000  # weights; a smaller model is fast as it is
KEPT = 1_000_000_000  # bytes of inputs, outputs and weights; a model that would take more is multiplied whole
ROUGH = torch.bfloat16


class Moved(nn.Module):
    """A layer, given `before` (1, t, in) that answered `after` (1, t, out). weight (out, in): ROUGH."""

    def __init__(self, before: Tensor, after: Tensor, weight: Tensor):
        super().__init__()
        self.before, self.after, self.weight = before, after, weight

    def forward(self, x: Tensor) -> Tensor:
        return self.after + linear((x - self.before).to(ROUGH), self.weight)


class Recorded(nn.Module):
    """A layer that remembers, under its name, what it was last given and what it answered."""

    def __init__(self, name: str, layer: nn.Module, seen: dict[str, tuple[Tensor, Tensor]]):
        super().__init__()
        self.name, self.layer, self.seen = name, layer, seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen[self.name] = x, (y := self.layer(x))
        return y


def moving(elastic: ElasticModel, view: nn.Module, positions: int) -> dict[str, BoundLinear]:
    """Returns the layers of this view, by name, that passes over so many positions should multiply so: all,
    on a processor that is made for ROUGH and of a model in float32; none of a model with experts, which see
    other positions each time, or one that is small or very large; no layer that rounds its input or turns it,
    or whose weight is packed."""
    experts = any(" " in role for block in elastic.layout.blocks for role in block.layers)
    if experts or (elastic.dtype, compute_dtype(elastic.device)) != (torch.float32, ROUGH):
        return {}
    layers = ((name, view.get_submodule(name)) for name in elastic.layers)
    plain = {name: layer for name, layer in layers if _plain(layer)}
    weights = sum(layer.weight.numel() for layer in plain.values())
    kept = sum(4 * positions * sum(elastic.shapes[name]) for name in plain) + 2 * weights
    return plain if weights >= LEAST and kept <= KEPT else {}


def moved(layers: Mapping[str, BoundLinear], seen: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Moved]:
    """Returns those of these layers, by name, whose inputs and outputs a pass at the base plan has seen."""
    return {name: Moved(*pair, layers[name].weight.to(ROUGH)) for name, pair in seen.items()}


def _plain(layer: BoundLinear) -> bool:
    return isinstance(layer.weight, Tensor) and layer.bits.activations == FULL and not layer.online
