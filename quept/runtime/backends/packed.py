"""The packed backend: a weight is the codes that are deployed, in the layout of quept.kernels, or the 16 bits
that it was loaded in, and nothing else of it stays in memory.

A few rows (a token of an answer) are multiplied by the codes themselves, which takes time as the bits do.
Many (a prompt, a measurement) would unpack them again and again: the layer is unpacked once, into a buffer
that the next layer takes over, and multiplied by torch's own product, as the dense backend does: the same
bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from quept.engines.base import Stored
from quept.kernels import FEW, PackedRows, PackedWeight, missing
from quept.kernels.packed import DENSE, TILE
from quept.models.clone import shallow_copy
from quept.numerics.graded import Graded
from quept.numerics.grid import Quantized, Rounding
from quept.plan import Bits

from .dense import BoundLinear, Dense, Weight
from .scratch import Scratch

PART = 1 << 22  # numbers that are unpacked at once: a large head goes part by part


@dataclass(frozen=True)
class Packed(Dense):
    """See the package docstring. scratch: where layers are unpacked, shared by all of them."""

    scratch: Scratch = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scratch", Scratch(self.dtype, self.device))

    @classmethod
    def missing(cls, device: torch.device, dtype: torch.dtype) -> str:
        if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
            return (
                f"Packed weights are multiplied on a CPU in float32 or bfloat16, not in {dtype} on {device}"
            )
        return missing()

    @property
    def scratch_bytes(self) -> int:
        return self.scratch.nbytes

    def let_go(self) -> None:
        self.scratch.clear()

    def ready(self, stored: Stored | None, values: Callable[[], Tensor]) -> Weight:
        if isinstance(stored, Quantized):
            return PackedWeight.pack(stored)
        if isinstance(stored, Graded):
            return PackedRows(tuple(map(PackedWeight.pack, stored.parts)))
        return super().ready(stored, values)

    def stored(self, weight: Weight) -> Stored | None:
        if isinstance(weight, PackedRows):
            return Graded(tuple(map(self.stored, weight.parts)))
        if not isinstance(weight, PackedWeight) or weight.scales is None:
            return None
        return Quantized(weight.bits, weight.group, weight.shape[1], *weight.rows_of_codes())

    def rounded(self, rounding: Callable[[], Rounding | None]) -> Weight | None:
        asked = rounding()
        return asked and PackedWeight.rounded(asked)

    def untouched(self, weight: Tensor) -> Weight | None:
        if weight.dtype == self.dtype or weight.dtype not in DENSE or weight.ndim != 2:
            return super().untouched(weight)
        return PackedWeight.dense(weight)

    def linear(
        self, shape: tuple[int, int], bias: Tensor | None, online: bool, static: Mapping[int, Tensor]
    ) -> PackedLinear:
        return PackedLinear(super().linear(shape, bias, online, static), self.scratch)

    def over(self, module: nn.Module, weight: PackedWeight | PackedRows) -> nn.Module | None:
        """Returns an embedding or a head over packed values; None for a module of another kind."""
        if type(module) is nn.Embedding:
            return Lookup(weight, self.dtype)
        if type(module) is nn.Linear:
            bias = None if module.bias is None else module.bias.data.to(self.dtype)
            return self.linear(weight.shape, bias, False, {}).bound(weight, Bits())
        return None


class PackedLinear(BoundLinear):
    """A BoundLinear over packed codes; `weight` are their values, unpacked anew each time it is asked for."""

    def __init__(self, dense: BoundLinear, scratch: Scratch):
        nn.Module.__init__(self)
        self.__dict__.update(shallow_copy(dense).__dict__)
        del self._buffers["weight"]
        self.__dict__["dense"], self.scratch, self.codes = dense, scratch, None

    def bound(self, weight: Weight, bits: Bits) -> BoundLinear:
        if isinstance(weight, Tensor):
            return self.dense.bound(weight, bits)
        other = (self._cast or self._caster())()
        state = other.__dict__
        state["bits"], state["codes"] = bits, weight
        return other

    def at(self, bits: Bits) -> BoundLinear:
        return self.bound(self.codes, bits)

    @property
    def weight(self) -> Tensor:
        return _values(self.codes, self.scratch.dtype)

    def product(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return linear(x, self.weight, self.bias)  # the gradient reads the values again
        if x.numel() <= FEW * self.in_features:
            return self.codes.matmul(x, self.bias).to(x.dtype)
        rows, columns = self.codes.shape
        first, *more = parts = list(_parts(self.codes))
        if not more:
            with self.scratch.lease(rows, columns) as values:
                return linear(x, first.unpack(values), self.bias)
        flat = x.reshape(-1, columns)
        y, start = flat.new_empty(len(flat), rows), 0
        for part in parts:
            here = slice(start, start + part.shape[0])
            with self.scratch.lease(*part.shape) as values:
                part.unpack(values)
                if self.bias is None:
                    torch.mm(flat, values.T, out=y[:, here])
                else:
                    y[:, here] = linear(flat, values, self.bias[here])
            start = here.stop
        return y.view(*x.shape[:-1], rows)


class Lookup(nn.Module):
    """An embedding over packed codes: ids (...) -> (..., features)."""

    def __init__(self, codes: PackedWeight | PackedRows, dtype: torch.dtype):
        super().__init__()
        self.codes, self.dtype = codes, dtype
        self.num_embeddings, self.embedding_dim = codes.shape

    @property
    def weight(self) -> Tensor:
        return _values(self.codes, self.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return self.codes.rows(ids).to(self.dtype)


def _values(weight: PackedWeight | PackedRows, dtype: torch.dtype) -> Tensor:
    device = next(_parts(weight)).codes.device
    return weight.unpack(torch.empty(weight.shape, dtype=dtype, device=device))


def _parts(weight: PackedWeight | PackedRows) -> Iterator[PackedWeight]:
    """The weight in rows of at most PART numbers, over the same memory."""
    if isinstance(weight, PackedRows):
        for part in weight.parts:
            yield from _parts(part)
        return
    rows, columns = weight.shape
    each = max(1, PART // (columns * TILE)) * TILE
    if each >= rows:
        yield weight
        return
    for start in range(0, rows, each):
        yield weight.part(start, min(start + each, rows))
