"""The slices of a layer in the layout of the kernels, read at any depth on the grid of that depth: a few
tokens are multiplied by those alone that they got."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quept.kernels import FEW, PackedWeight
from quept.kernels.nested import at_depth, pack_slices
from quept.numerics.nested import BITS, DEPTHS, SLICE, Grid, Nested


@dataclass(frozen=True, eq=False)
class Planes:
    """grid: as the codes were made. read: the weight at each depth, all over the same codes."""

    columns: int
    group: int
    grid: Grid
    read: Mapping[int, PackedWeight]

    @classmethod
    def of(cls, stored: Nested, grids: Mapping[int, Grid]) -> Planes:
        """grids: of the widths that have their own."""
        whole = pack_slices(list(stored.slices), stored.columns, stored.group)
        each = {bits: grids.get(bits, stored.grid) for bits in DEPTHS}
        read = {bits: at_depth(whole, bits // SLICE, grid.scales, grid.zeros) for bits, grid in each.items()}
        return cls(stored.columns, stored.group, stored.grid, read)

    def leading(self, bits: int) -> Tensor:
        """The leading bits of all codes (out, in) uint8."""
        whole = self.read[-(-bits // SLICE) * SLICE]
        steps = replace(  # values are then the middles of cells, in steps of 8 bits
            whole,
            scales=torch.full_like(whole.scales, 1 << (BITS - SLICE)),
            zeros=torch.zeros_like(whole.zeros),
        )
        return steps.unpack().to(torch.uint8) >> (BITS - bits)

    def few(self, x: Tensor) -> bool:
        """Whether so many tokens are multiplied by slices faster than by values."""
        return x.numel() <= FEW * self.columns

    @property
    def shape(self) -> tuple[int, int]:
        return self.read[BITS].shape

    @property
    def nbytes(self) -> int:
        """Bytes in memory, the grid of every depth counted."""
        grids = sum(weight.scales.nbytes + weight.zeros.nbytes for weight in self.read.values())
        return self.read[BITS].codes.nbytes + grids
