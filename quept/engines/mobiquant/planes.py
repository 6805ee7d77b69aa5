"""The slices of a layer in the layout of the kernels: a few tokens are multiplied by those alone that they
got.

    y[r] = sum_k 4^-k sum_g S[r,g] sum_j slice_k[r,j] x[j]  +  sum_g S[r,g] / 64 (2^(7-b) - Z[r,g]) X[g]

with X[g] the sum of a group's inputs: the values of quept.numerics.nested, up to the order of summation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from quept.kernels import FEW, PackedWeight
from quept.kernels.packed import TILE
from quept.numerics.grid import Quantized
from quept.numerics.nested import BITS, DEPTHS, SLICE, STEPS, Grid, Nested
from quept.numerics.packing import packed_bytes


@dataclass(frozen=True, eq=False)
class Planes:
    """slices: four weights of 2 bits with scales S and zeros 0. read: at each depth the slices that are on,
    with the scales of that depth, and the constant part (out, groups)."""

    columns: int
    group: int
    grid: Grid
    slices: tuple[PackedWeight, ...]
    read: Mapping[int, tuple[tuple[PackedWeight, ...], Tensor]]

    @classmethod
    def of(cls, stored: Nested, grids: Mapping[int, Grid]) -> Planes:
        """grids: of the widths that have their own."""
        rows, groups = stored.grid.scales.shape
        zeros = torch.zeros(rows, packed_bytes(groups, SLICE), dtype=torch.uint8)
        ones = torch.ones(rows, groups, dtype=torch.float16)
        packed = [
            PackedWeight.pack(Quantized(SLICE, stored.group, stored.columns, part, ones, zeros))
            for part in stored.slices
        ]
        slices = tuple(replace(part, scales=packed[0].scales, zeros=packed[0].zeros) for part in packed)
        read = {}
        for count, bits in enumerate(DEPTHS, 1):
            grid = grids.get(bits, stored.grid)
            scales = _tiled(grid.scales)
            on = tuple(replace(part, scales=scales) for part in slices[:count])
            constant = grid.scales.float() / STEPS * (2 ** (BITS - 1 - bits) - grid.zeros.float())
            read[bits] = on, constant
        return cls(stored.columns, stored.group, stored.grid, slices, read)

    def leading(self, bits: int) -> Tensor:
        """The leading bits of all codes (out, in) uint8."""
        count = -(-bits // SLICE)
        found = self.slices[0].unpack()
        for part in self.slices[1:count]:
            found = found.mul_(1 << SLICE).add_(part.unpack())
        return found.to(torch.uint8) >> (count * SLICE - bits)

    def product(self, x: Tensor, bits: int) -> Tensor:
        """x (..., in), at most FEW rows -> (..., out) float32 at a depth."""
        on, constant = self.read[bits]
        x = x.float()
        y = on[-1].matmul(x)
        for part in reversed(on[:-1]):
            y.mul_(1 / (1 << SLICE)).add_(part.matmul(x))
        sums = pad(x, (0, -self.columns % self.group)).unflatten(-1, (-1, self.group)).sum(-1)
        return y.add_(linear(sums, constant))

    def few(self, x: Tensor) -> bool:
        """Whether so many tokens are multiplied by slices faster than by values."""
        return x.numel() <= FEW * self.columns

    @property
    def shape(self) -> tuple[int, int]:
        return self.slices[0].shape

    @property
    def nbytes(self) -> int:
        """Bytes in memory, what the kernels need besides counted."""
        scales = {id(t): t.nbytes for on, _ in self.read.values() for t in (on[0].scales, on[0].zeros)}
        constants = sum(constant.nbytes for _, constant in self.read.values())
        return sum(part.codes.nbytes for part in self.slices) + sum(scales.values()) + constants


def _tiled(scales: Tensor) -> Tensor:
    """(out, groups) -> (tiles, groups, TILE), as quept.kernels.packed has them."""
    rows = pad(scales, (0, 0, 0, -len(scales) % TILE))
    return rows.unflatten(0, (-1, TILE)).transpose(1, 2).contiguous()
