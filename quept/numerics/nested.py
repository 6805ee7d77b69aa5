"""Nested codes: one 8-bit code for each weight whose leading bits are the code of every narrower width.

    s = S / 64      S = (hi - lo) / 4, the 2-bit step      Z = clamp(round(-lo / s), 0, 255)
    q = clamp(floor(x / s + Z), 0, 255)                    the code, one of 256 cells of the range
    q_b = q >> (8 - b)                                     read at b bits
    x_b = s (2^(8-b) (q_b + 1/2) - Z)                      the middle of its cell

So every two further bits split each cell into four, with a quarter of the scale, and reading fewer bits is
reading the high ones: switching costs nothing and only one store is kept. MoBiQuant (arXiv 2602.20191) has
such slices of two bits; flooring with values in the middle of their cells is its alignment. S is a float16
value, Z a whole number of 8-bit steps; a group of zeros has S = 0 and gives zeros at every width. Scale and
zero-point may be others for a width (`Grid`), the codes are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .grid import TINY, grouped
from .packing import pack, packed_bytes, unpack

BITS, SLICE = 8, 2  # of the whole code, of one slice
DEPTHS = tuple(range(SLICE, BITS + 1, SLICE))
STEPS = 1 << (BITS - SLICE)  # 8-bit steps in a 2-bit one


@dataclass(frozen=True, eq=False)
class Grid:
    """scales (out, groups) float16, the 2-bit step S; zeros (out, groups) uint8, Z in 8-bit steps."""

    scales: Tensor
    zeros: Tensor

    @property
    def nbytes(self) -> int:
        return self.scales.nbytes + self.zeros.nbytes


@dataclass(frozen=True, eq=False)
class Nested:
    """One weight. slices (4, out, packed row) uint8: the code's bits two by two, highest first, as `packing`
    packs them."""

    columns: int
    group: int
    slices: Tensor
    grid: Grid

    @property
    def shape(self) -> tuple[int, int]:
        return self.slices.shape[1], self.columns

    @property
    def nbytes(self) -> int:
        return self.slices.nbytes + self.grid.nbytes

    def leading(self, bits: int) -> Tensor:
        """The leading bits of all codes, q_b (out, in) uint8; reads only the slices that hold them."""
        count = -(-bits // SLICE)
        found = unpack(self.slices[0], SLICE, self.columns)
        for part in self.slices[1:count]:
            found = found << SLICE | unpack(part, SLICE, self.columns)
        return found >> (count * SLICE - bits)


def nested(weight: Tensor, group: int) -> Nested:
    """Returns a weight (out, in) as nested codes. ValueError where it is not finite."""
    codes, grid = codes_of(weight, group)
    parts = [codes >> shift & 3 for shift in range(BITS - SLICE, -1, -SLICE)]
    return Nested(weight.shape[1], group, torch.stack([pack(part, SLICE) for part in parts]), grid)


def codes_of(weight: Tensor, group: int) -> tuple[Tensor, Grid]:
    """Returns the codes (out, in) uint8 and the grid of a weight (out, in)."""
    rows, columns = weight.shape
    x = grouped(weight.float(), group)
    lo, hi = x.amin(-1).clamp_(max=0), x.amax(-1).clamp_(min=0)
    span = (hi - lo) / 4
    scales = torch.where(span == 0, span, span.clamp(min=TINY)).to(torch.float16)
    if not torch.isfinite(scales).all():
        raise ValueError("a weight is not finite, or its range does not fit a float16 scale")
    step = torch.where(scales == 0, torch.ones_like(span), scales.float()) / STEPS
    zeros = (-lo / step).round_().clamp_(0, 255)
    codes = x.div(step[..., None]).add_(zeros[..., None]).floor_().clamp_(0, 255).to(torch.uint8)
    return codes.reshape(rows, -1)[:, :columns].contiguous(), Grid(scales, zeros.to(torch.uint8))


def middles(codes: Tensor, bits: int) -> Tensor:
    """Returns the middles of cells, float32: in 8-bit steps above the lower end of the range."""
    return codes.float().add_(0.5).mul_(1 << (BITS - bits))


def read(codes: Tensor, bits: int, grid: Grid, group: int) -> Tensor:
    """Returns the values (out, in) float32 of leading bits (out, in) on a grid."""
    rows, columns = codes.shape
    x = grouped(middles(codes, bits), group)
    x = x.sub_(grid.zeros.float()[..., None]).mul_(grid.scales.float().div(STEPS)[..., None])
    return x.reshape(rows, -1)[:, :columns].contiguous()


def fitted(weight: Tensor, codes: Tensor, bits: int, grid: Grid, group: int) -> tuple[Tensor, Tensor]:
    """Returns the scales and zeros (out, groups) float32 with which the codes (out, in) at some of their bits
    come nearest to a weight: least squares, group by group."""
    x, m = grouped(weight.float(), group), grouped(middles(codes >> (BITS - bits), bits), group)
    dx, dm = x - x.mean(-1, keepdim=True), m - m.mean(-1, keepdim=True)
    slope = (dx * dm).sum(-1) / dm.square().sum(-1).clamp(min=1e-12) * STEPS
    scales, zeros = grid.scales.float(), grid.zeros.float()
    scales = torch.where((slope > scales / 4) & (slope < 2 * scales), slope, scales)
    at = m.mean(-1) - x.mean(-1) * STEPS / scales.clamp(min=TINY)
    return scales, torch.where(scales > 0, at.clamp(0, 255), zeros)


def nested_bytes(rows: int, columns: int, bits: int, group: int) -> int:
    """Returns the bytes of the leading bits of a weight of this shape and one grid."""
    return rows * (packed_bytes(columns, bits) + 3 * -(-columns // group))
