"""The rounding grid of one width: a weight (out, in) -> integer codes, one scale and one zero-point per group
of columns.

    lo = min(0, x.min()) * sigmoid(beta)     hi = max(0, x.max()) * sigmoid(alpha)    (no clipping: factors 1)
    s  = (hi - lo) / (2^b - 1)               z  = clamp(round(-lo / s), 0, 2^b - 1)
    q  = clamp(round(x / s) + z, 0, 2^b - 1)          x' = (q - z) * s

QuEPT (arXiv 2602.12609), section on learned clipping, with four rules that let real engines hold the codes:
zero is always inside the range (a one-sided group would need a zero-point that no format stores), `s` is a
float16 value, 8 bits are symmetric (z = 128, hence not stored), and a group of zeros gets s = 1 instead of
dividing by zero. Rounding is half-to-even.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .packing import pack, packed_bytes, unpack

SYMMETRIC_BITS, SYMMETRIC_ZERO = 8, 128
TINY = torch.finfo(torch.float16).tiny  # smallest normal float16: a scale below it would lose digits


NOT_FINITE = "a weight is not finite, or its range does not fit a float16 scale"


@dataclass(frozen=True)
class Quantized:
    """One weight at one width, packed. codes (out, packed row) uint8, scales (out, groups) float16, zeros
    (out, packed row) uint8 or None at 8 bits. `columns` is in_features and `group` the columns that share a
    scale."""

    bits: int
    group: int
    columns: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.codes, self.scales, self.zeros) if t is not None)


@dataclass(frozen=True)
class Rounding:
    """A weight (out, in) that is to be rounded at one width. added (out, in) float32: what is added to it
    first, or None; low, high, second: see `quantize`. Backends may round it in their own way, to the same
    codes."""

    weight: Tensor
    bits: int
    group: int
    added: Tensor | None = None
    low: Tensor | float = 1.0
    high: Tensor | float = 1.0
    second: Tensor | None = None

    @property
    def moved(self) -> Tensor:
        """What is rounded, (out, in)."""
        return self.weight if self.added is None else self.weight.float() + self.added

    def quantized(self) -> tuple[Quantized, Tensor]:
        """What `quantize` returns of it."""
        return quantize(self.moved, self.bits, self.group, self.low, self.high, self.second)


def group_size(columns: int, group: int | str = "auto") -> int:
    """Columns per group: a number, "row" for one group a row, or "auto" for the largest of 128, 64, 32
    dividing `columns`."""
    if group == "auto":
        return next((g for g in (128, 64, 32) if columns % g == 0), columns)
    if group == "row":
        return columns
    if isinstance(group, bool) or not isinstance(group, int) or group < 1:
        raise ValueError(f'group must be a number of columns, "row" or "auto"; got {group!r}')
    return min(group, columns)


def quantized_bytes(rows: int, columns: int, bits: int, group: int) -> int:
    """Bytes of `quantize(...)` for a weight of this shape, without making it."""
    groups = -(-columns // group)
    zeros = 0 if bits == SYMMETRIC_BITS else packed_bytes(groups, bits)
    return rows * (packed_bytes(columns, bits) + 2 * groups + zeros)


def quantize(
    weight: Tensor,
    bits: int,
    group: int,
    low: Tensor | float = 1.0,
    high: Tensor | float = 1.0,
    second: Tensor | None = None,
) -> tuple[Quantized, Tensor]:
    """weight (out, in) -> (its packed form, its values on the grid (out, in) float32).

    low, high: clip factors in (0, 1] for the lower and upper end, broadcastable to (out, groups, 1). The last
    group may be ragged. second (out, in): true for weights that go to the second nearest point instead."""
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(
            f"a weight to quantize is a non-empty (out, in) matrix; got shape {tuple(weight.shape)}"
        )
    rows, columns = weight.shape
    x = grouped(weight.float(), group)
    scale, zero, _, _ = scale_and_zero(x, bits, low, high)
    top = 2**bits - 1
    q = on_grid(x.div(scale), None if second is None else grouped(second.float(), group))
    q = q.add_(zero).clamp_(0, top)
    codes = q.to(torch.uint8).reshape(rows, -1)[:, :columns]
    values = q.sub_(zero).mul_(scale).reshape(rows, -1)[:, :columns]
    zeros = None if bits == SYMMETRIC_BITS else pack(zero[..., 0].to(torch.uint8), bits)
    scales = scale[..., 0].to(torch.float16)
    return Quantized(bits, group, columns, pack(codes, bits), scales, zeros), values.contiguous()


def on_grid(u: Tensor, second: Tensor | None = None) -> Tensor:
    """u = x / s -> the nearest whole numbers or, where `second` is 1, the ones on the other side of u."""
    nearest = u.round()
    return nearest if second is None else nearest.add_((u - nearest).sign_().mul_(second))


def dequantize(packed: Quantized) -> Tensor:
    """The values on the grid, (out, in) float32: exactly those `quantize` returned."""
    groups = packed.scales.shape[1]
    q = grouped(unpack(packed.codes, packed.bits, packed.columns).float(), packed.group)
    zero = (
        SYMMETRIC_ZERO
        if packed.zeros is None
        else unpack(packed.zeros, packed.bits, groups).float()[..., None]
    )
    values = q.sub_(zero).mul_(packed.scales.float()[..., None])
    return values.reshape(values.shape[0], -1)[:, : packed.columns].contiguous()


def fake_quantize_tokens(x: Tensor, bits: int) -> Tensor:
    """Activations (..., features) on a dynamic symmetric grid, one scale a token: s = max|x| / (2^(bits-1) -
    1). Same dtype."""
    top = 2 ** (bits - 1) - 1
    scale = x.abs().amax(dim=-1, keepdim=True).div_(top)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return x.div(scale).round_().clamp_(-top, top).mul_(scale)


def grouped(x: Tensor, group: int) -> Tensor:
    """(out, in) -> (out, groups, group); a ragged last group is filled with zeros, which never change its
    range."""
    rows, columns = x.shape
    if columns % group:
        x = torch.nn.functional.pad(x, (0, -columns % group))
    return x.reshape(rows, -1, group)


def scale_and_zero(
    x: Tensor, bits: int, low: Tensor | float = 1.0, high: Tensor | float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (out, groups, group) -> scale, zero-point, lower and upper end of the range before clipping, each
    (out, groups, 1) float32; scale holds float16 values, the zero-point whole numbers."""
    lo = x.amin(-1, keepdim=True).clamp_(max=0)
    hi = x.amax(-1, keepdim=True).clamp_(min=0)
    lowest, highest = lo * low, hi * high
    top = 2**bits - 1
    if bits == SYMMETRIC_BITS:
        span = 2 * torch.maximum(-lowest, highest) / (top - 1)
    else:
        span = (highest - lowest) / top
    scale = torch.where(span == 0, torch.ones_like(span), span.clamp(min=TINY)).to(torch.float16).float()
    if not torch.isfinite(scale).all():
        raise ValueError(NOT_FINITE)
    if bits == SYMMETRIC_BITS:
        zero = torch.full_like(scale, SYMMETRIC_ZERO)
    else:
        zero = (-lowest / scale).round_().clamp_(0, top)
    return scale, zero, lo, hi
