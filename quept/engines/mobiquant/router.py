"""How many slices of two bits a token gets in a layer: a score for each further slice against a threshold.

    scores (tokens, 3) = router(x)          what the slices 2, 3, 4 are worth here: log of KL a weight saved
    gates = scores >= thresholds            slice k is on where it and all before it are
    depth = 2 (1 + number of slices on)     2, 4, 6 or 8 bits

Layers that read the same input share a router. Thresholds belong to an average and fix what it costs; a
threshold of -inf keeps a slice on, inf off: a layer at a fixed depth. Three kinds, by `kind`:

    mlp         scores = W2 relu(W1 f + b1) + b2,   f = (x sqrt(n) / |x|, log |x|)
    norm        scores = offset + 2 log |x|                                   (DP-LLM's estimators, without
    projection  scores = offset + 2 log |P x|       P: a random few rows      learning)
                of what rounding to 2 bits leaves of the weight

Everything is computed in float32, whatever the model is computed in, and where there are kernels each token
by itself: its bits do not depend on what is read beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import linear

from quept.kernels import missing
from quept.kernels.nested import RouterTable, dense_rows
from quept.numerics.nested import SLICE

KINDS: dict[str, tuple[str, ...]] = {  # its tensors
    "mlp": ("w1", "b1", "w2", "b2"),
    "norm": ("offset",),
    "projection": ("p", "offset"),
}
WIDE = {"w1": 1, "p": 0}  # tensors with a column for each input, and how many more they have
FURTHER = 3  # slices that a router decides on
SMALLEST = 1e-12


@dataclass(frozen=True, eq=False)
class Router:
    """tensors: by the names of KINDS. w1 (hidden, in + 1), w2 (3, hidden), p (rows, in), offset (3,)."""

    kind: str
    tensors: Mapping[str, Tensor]

    def scores(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., 3) float32, without a gradient."""
        if x.device.type == "cpu" and not missing():
            return self.table(x.shape[-1]).scores(x)
        x, t = x.float(), {name: one.to(x.device) for name, one in self.tensors.items()}
        if self.kind == "mlp":
            hidden = linear(features(x), t["w1"].float(), t["b1"].float()).relu()
            return linear(hidden, t["w2"].float(), t["b2"].float())
        seen = linear(x, t["p"].float()) if self.kind == "projection" else x
        return seen.square().sum(-1, keepdim=True).clamp(min=SMALLEST).log() + t["offset"].float()

    def table(self, columns: int) -> RouterTable:
        """The same for so many inputs as the kernels read it: one for all layers that share this router."""
        if columns not in self._tables:
            t = {name: one.float().contiguous() for name, one in self.tensors.items() if name not in WIDE}
            wide = next((self.tensors[name] for name in WIDE if name in self.tensors), None)
            first = None if wide is None else dense_rows(wide)
            parts = t.get("b2", t.get("offset")), t.get("b1"), t.get("w2")
            self._tables[columns] = RouterTable(columns, first, *parts)
        return self._tables[columns]

    @cached_property
    def _tables(self) -> dict[int, RouterTable]:
        return {}

    def misfit(self, columns: int) -> str:
        """Returns why it does not fit a layer of this many inputs; "" if it does."""
        shapes = {name: tuple(t.shape) for name, t in self.tensors.items()}
        hidden = (shapes.get("b1") or shapes.get("p") or (0,))[0]
        wanted = {
            "w1": (hidden, columns + 1),
            "b1": (hidden,),
            "w2": (FURTHER, hidden),
            "b2": (FURTHER,),
            "p": (hidden, columns),
            "offset": (FURTHER,),
        }
        wanted = {name: wanted[name] for name in KINDS.get(self.kind, ())}
        if not wanted or shapes != wanted:
            return f"its router is not one of the kind {self.kind!r} for {columns} inputs"
        if not all(t.is_floating_point() and t.isfinite().all() for t in self.tensors.values()):
            return "its router holds what is no number"
        return ""

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())

    def bytes_for(self, columns: int) -> int:
        """Bytes of a router of this kind and size for another number of inputs."""
        wide = sum(
            t.nbytes // t.shape[1] * (columns - self.columns) for n, t in self.tensors.items() if n in WIDE
        )
        return self.nbytes + wide

    @property
    def columns(self) -> int:
        """Inputs of its layer; 0 where they do not matter."""
        return next((self.tensors[n].shape[1] - more for n, more in WIDE.items() if n in self.tensors), 0)


def features(x: Tensor) -> Tensor:
    """x (..., in) float32 -> (..., in + 1): its direction, and the logarithm of its norm."""
    norm = x.square().sum(-1, keepdim=True).clamp(min=SMALLEST).sqrt()
    return torch.cat([x * (x.shape[-1] ** 0.5 / norm), norm.log()], -1)


def depths(scores: Tensor, thresholds: Tensor, cap: int) -> Tensor:
    """scores (..., 3), thresholds (3,) -> bits (...) int64: 2, 4, 6 or 8, and at most `cap`."""
    on = (scores >= thresholds).long().cumprod(-1).sum(-1)
    return (SLICE * (1 + on)).clamp(max=cap)
