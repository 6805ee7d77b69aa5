"""Products with packed weights on CUDA, in Triton, over the very layout of the CPU (c/weight.h).

    y[m, r] = sum over columns j of w[r, j] x[m, j]      w = scale * (code - zero), rounded to x's type

One program multiplies the sixteen rows of a tile, or a share of their columns, with up to sixteen inputs: a
lane's word holds the codes of four columns of a plane, so every element is a shift and a mask of a word that
its neighbors read as well. One input is a sum over columns, more are a `tl.dot`; sums are float32. The values
are those that a dense weight of x's type has, so a product differs from a dense one in the order of summation
only.

Where there is no CUDA, TRITON_INTERPRET=1 runs the same code on a CPU, slowly: that is how it is tested.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .packed import BLOCK, TILE, PackedWeight

INPUTS = 16  # of one launch; more are faster unpacked and multiplied dense
PART, WARPS = 128, 2  # columns at a time and warps of a program: the fastest of five settings on an H100
PROGRAMS = 1024  # that a product is cut into, where its rows alone give fewer: columns are shared out as well


@triton.jit
def _codes(words, block, k, c, bits: tl.constexpr, inside):
    """Codes of the columns (block, quad k, byte c) of sixteen rows: see the planes of c/weight.h. words:
    where the first line of each row begins."""
    line = words[:, None] + block[None, :] * (bits * 16)
    if bits == 8:
        word = tl.load(line + k[None, :] * 16, mask=inside, other=0)
        return (word >> (8 * c)[None, :]) & 255
    codes = tl.zeros(inside.shape, dtype=tl.int32)
    if bits & 4:
        word = tl.load(line + (k // 2)[None, :] * 16, mask=inside, other=0)
        codes += (word >> (8 * c + 4 * (k % 2))[None, :]) & 15
        line += 4 * 16
    if bits & 2:
        word = tl.load(line + (k // 4)[None, :] * 16, mask=inside, other=0)
        codes += ((word >> (8 * c + 2 * (k % 4))[None, :]) & 3) << (bits & 4)
        line += 2 * 16
    if bits & 1:
        word = tl.load(line, mask=inside, other=0)
        codes += ((word >> (8 * c + k)[None, :]) & 1) << (bits - 1)
    return codes


@triton.jit
def _values(
    codes, scales, zeros, tile, start, blocks, groups, group_blocks, bits: tl.constexpr, part: tl.constexpr
):
    """w (16, part) float32 of one tile, from column `start` of the filled-up row; zeros beyond its end."""
    row, column = tl.arange(0, 16), start + tl.arange(0, part)
    block, j = column // 32, column % 32
    inside = (row[:, None] >= 0) & (block < blocks)[None, :]
    words = codes + tile * (blocks * bits * 16) + row
    code = _codes(words, block, j // 4, j % 4, bits, inside)
    at = (tile * groups + tl.minimum(block // group_blocks, groups - 1))[None, :] * 16 + row[:, None]
    scale = tl.load(scales + at, mask=inside, other=0.0).to(tl.float32)
    if bits == 8:
        return (code - 128).to(tl.float32) * scale
    zero = tl.load(zeros + at, mask=inside, other=0).to(tl.int32)
    return (code - zero).to(tl.float32) * scale


@triton.jit
def _product(
    codes,
    scales,
    zeros,
    x,
    y,
    rows,
    blocks,
    groups,
    group_blocks,
    inputs,
    share,
    many: tl.constexpr,
    bits: tl.constexpr,
    part: tl.constexpr,
):
    """The sums of one tile over `share` parts of the columns: y (shares, inputs, rows) float32; x (inputs,
    blocks * 32). many: more than one input."""
    tile, width = tl.program_id(0), blocks * 32
    r, first = tile * 16 + tl.arange(0, 16), tl.program_id(1) * share * part
    y += tl.program_id(1) * inputs * rows
    if many:
        m = tl.arange(0, 16)
        total = tl.zeros((16, 16), dtype=tl.float32)  # (rows, inputs)
        for start in range(first, tl.minimum(first + share * part, width), part):
            column = start + tl.arange(0, part)
            inside = (column < width)[:, None] & (m < inputs)[None, :]
            xs = tl.load(x + m[None, :] * width + column[:, None], mask=inside, other=0.0)
            w = _values(codes, scales, zeros, tile, start, blocks, groups, group_blocks, bits, part)
            total = tl.dot(w.to(xs.dtype), xs, total, input_precision="ieee")
        tl.store(y + m[None, :] * rows + r[:, None], total, mask=(r < rows)[:, None] & (m < inputs)[None, :])
    else:
        sums = tl.zeros((16, part), dtype=tl.float32)
        for start in range(first, tl.minimum(first + share * part, width), part):
            column = start + tl.arange(0, part)
            xs = tl.load(x + column, mask=column < width, other=0.0)
            w = _values(codes, scales, zeros, tile, start, blocks, groups, group_blocks, bits, part)
            sums += w.to(xs.dtype).to(tl.float32) * xs.to(tl.float32)[None, :]
        tl.store(y + r, tl.sum(sums, axis=1), mask=r < rows)


@triton.jit
def _unpack(
    codes,
    scales,
    zeros,
    out,
    rows,
    columns,
    blocks,
    groups,
    group,
    group_blocks,
    bits: tl.constexpr,
    part: tl.constexpr,
):
    """The values of one tile, `part` columns of the filled-up row: out (rows, columns)."""
    tile, start = tl.program_id(0), tl.program_id(1) * part
    w = _values(codes, scales, zeros, tile, start, blocks, groups, group_blocks, bits, part)
    r, column = tile * 16 + tl.arange(0, 16), start + tl.arange(0, part)
    g = tl.minimum(column // (32 * group_blocks), groups - 1)
    place = column - g * 32 * group_blocks  # within its group, whose end is filled up
    real = (place < group) & (g * group + place < columns)
    at = r[:, None] * columns + (g * group + place)[None, :]
    tl.store(out + at, w.to(out.dtype.element_ty), mask=(r < rows)[:, None] & real[None, :])


def matmul(weight: PackedWeight, x: Tensor, part: int = PART, warps: int = WARPS) -> Tensor:
    """x (inputs, in), any number of inputs, on the weight's device -> (inputs, out) float32, INPUTS at a
    time. part, warps: columns that a program takes at a time, a power of two, and the warps it has."""
    rows, columns = weight.shape
    if x.ndim != 2 or x.shape[1] != columns or x.device != weight.codes.device:
        raise ValueError(f"this weight multiplies (inputs, {columns}) on {weight.codes.device}")
    tiles, groups, blocks = weight.sizes
    parts = -(-blocks * BLOCK // part)
    share = -(-parts // min(parts, -(-PROGRAMS // tiles)))
    shares, results = -(-parts // share), []
    for few in _filled(weight, x).split(INPUTS):
        y = torch.empty(shares, len(few), rows, dtype=torch.float32, device=x.device)
        shape = (rows, blocks, groups, -(-weight.group // BLOCK), len(few), share)
        settings = {"many": len(few) > 1, "bits": weight.bits, "part": part, "num_warps": warps}
        _product[(tiles, shares)](*_tables(weight), few, y, *shape, **settings)
        results.append(y[0] if shares == 1 else y.sum(0))
    return results[0] if len(results) == 1 else torch.cat(results)


def unpack(weight: PackedWeight, out: Tensor) -> Tensor:
    """Writes the values (out, in) into a contiguous buffer of any float type on the weight's device."""
    if out.shape != weight.shape or not out.is_contiguous() or out.device != weight.codes.device:
        raise ValueError(f"unpacking takes a contiguous buffer {weight.shape} on {weight.codes.device}")
    rows, columns = weight.shape
    tiles, groups, blocks = weight.sizes
    shape = (rows, columns, blocks, groups, weight.group, -(-weight.group // BLOCK))
    grid = (tiles, -(-blocks * BLOCK // PART))
    _unpack[grid](*_tables(weight), out, *shape, bits=weight.bits, part=PART)
    return out


class TritonWeight(PackedWeight):
    """A PackedWeight that these kernels multiply with, wherever it lies."""

    @classmethod
    def of(cls, weight: PackedWeight, device: torch.device | str) -> TritonWeight:
        """The same weight on a device."""
        parts = {field.name: getattr(weight, field.name) for field in fields(PackedWeight)}
        return cls(**{name: p.to(device) if isinstance(p, Tensor) else p for name, p in parts.items()})

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., in) -> (..., out) float32."""
        with torch.cuda.device_of(self.codes):
            y = matmul(self, x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
        return y if bias is None else y.add_(bias)

    def unpack(self, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = torch.empty(self.shape, dtype=torch.float32, device=self.codes.device)
        with torch.cuda.device_of(self.codes):
            return unpack(self, out)

    def rows(self, ids: Tensor) -> Tensor:
        """ids (...) -> their rows (..., in) float32: the tiles that hold one are unpacked. ids that are not
        there are the device's own error, as a look-up's are."""
        tiles, of = torch.unique(ids // TILE, return_inverse=True)
        zeros = None if self.zeros is None else self.zeros[tiles]
        shape, codes = (len(tiles) * TILE, self.shape[1]), self.codes[tiles]
        held = replace(self, shape=shape, codes=codes, scales=self.scales[tiles], zeros=zeros)
        return held.unpack()[of * TILE + ids % TILE]


def _tables(weight: PackedWeight) -> tuple[Tensor, Tensor, Tensor]:
    """Codes as words of four bytes; scales, and zeros (any pointer where there are none)."""
    zeros = weight.codes if weight.zeros is None else weight.zeros
    return weight.codes.view(torch.int32), weight.scales, zeros


def _filled(weight: PackedWeight, x: Tensor) -> Tensor:
    """x (inputs, in) -> (inputs, blocks * 32): every group filled up with zeros to whole blocks."""
    if weight.group % BLOCK == 0:
        return torch.nn.functional.pad(x, (0, -x.shape[1] % BLOCK)).contiguous()
    groups = x.split(weight.group, dim=1)
    return torch.cat([torch.nn.functional.pad(g, (0, -g.shape[1] % BLOCK)) for g in groups], 1).contiguous()
