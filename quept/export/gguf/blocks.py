"""Codes of our grid in the blocks of GGUF, kept as they are: w = s (q - z) with s in float16.

    Q4_1, Q5_1   32 columns: d, m float16, codes           w = d q + m         d = s, m = -s z rounded
    Q8_0         32 columns: d float16, int8               w = d v             d = s, v = q - z
    Q2_K         256 columns: 16 x (4 bits, 4 bits), codes, d, dmin float16
    Q4_K, Q5_K   256 columns: d, dmin float16, 8 x (6 bits, 6 bits), codes
                 w = d a q - dmin b                        d = dmin = s, a = 1, b = z: exact

A block takes codes of as many bits or fewer. Those of 32 columns need scales for 32 columns or a multiple,
the K types for 256. The sub-scales of K types are where other grids lose digits; one scale for the whole
block does not. Layouts as in ggml-common.h; `gguf` of llama.cpp reads what is written here (a test).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from quept.numerics.grid import SYMMETRIC_ZERO, Quantized
from quept.numerics.packing import unpack

_LOW = 0x0F0F0F0F0F0F0F0F
SMALL = {2: "Q4_1", 3: "Q4_1", 4: "Q4_1", 5: "Q5_1", 6: "Q8_0", 7: "Q8_0", 8: "Q8_0"}
SUPER = SMALL | {2: "Q2_K", 3: "Q4_K", 4: "Q4_K", 5: "Q5_K"}


def kinds(columns: int, group: int) -> dict[int, str]:
    """Returns the kind of block that holds each width of a weight with these columns and columns per scale;
    {} where none does."""
    for table, size in ((SUPER, 256), (SMALL, 32)):
        if columns % size == 0 and group % size == 0:
            return table
    return {}


def nbytes(rows: int, columns: int, kind: str) -> int:
    """Returns the bytes of a weight in blocks of this kind."""
    size, width = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return rows * columns // size * width


def to_blocks(packed: Quantized, kind: str) -> Tensor:
    """Returns the blocks (out, blocks, bytes of a block) uint8 of a quantized weight."""
    if packed.bits == 4 and kind == "Q4_1":
        return _nibbles_placed(packed)
    size, _ = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    codes, scale, zero = _by_block(packed, size)
    return _WRITE[kind](codes, scale, zero)


def from_blocks(blocks: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what blocks (out, blocks, bytes) say: codes (out, blocks, columns of a block) uint8, of Q8_0
    v + 128, and d and m (out, blocks) float32 with w = d q + m."""
    return READ[kind](blocks)


def expected(packed: Quantized, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what `from_blocks` has to say of a quantized weight, m not rounded."""
    size, _ = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    codes, scale, zero = _by_block(packed, size)
    scale = scale.float()
    if kind == "Q8_0":
        return codes + (SYMMETRIC_ZERO - zero)[..., None], scale, scale * -SYMMETRIC_ZERO
    return codes, scale, scale * -zero.float()


def difference(content: Tensor, packed: Quantized, kind: str) -> float | None:
    """Returns by how much blocks that were read, bytes (n,), differ from a weight's values, as a share of the
    largest value that its grid holds; None where codes or scales differ, or the offset by more than its
    rounding."""
    size, width = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    scale, zero = _scales(packed, size)
    blocks = content.view(*scale.shape, width)
    scale, zero, top = scale.float(), zero.float(), 2**packed.bits - 1
    offset = scale * -zero
    if packed.bits == 4 and kind == "Q4_1":
        d, m = _halves(blocks[..., :2]), _halves(blocks[..., 2:4])
        same = torch.equal(_nibbles_taken(blocks), packed.codes.cpu())
    else:
        codes, d, m = from_blocks(blocks, kind)
        wanted, _, shifted = expected(packed, kind)
        same = torch.equal(codes, wanted)
        if kind == "Q8_0":
            m, offset = m - shifted, torch.zeros_like(m)  # the offset is in the codes
    nearest = offset if kind.endswith(("_K", "_0")) else offset.half().float()
    if not (same and torch.equal(d, scale) and torch.equal(m, nearest)):
        return None
    largest = (scale * torch.maximum(zero, top - zero)).max()
    return float((m - offset).abs().max() / largest)


def _nibbles_placed(packed: Quantized) -> Tensor:
    """Blocks of Q4_1 out of packed codes of 4 bits, 16 at a time and never one by one: ours lie in the order
    of their columns, theirs have column j in the low half of byte j and column 16 + j in the high one."""
    scale, zero = _scales(packed, 32)
    first, second = _words(packed.codes)
    low = (first & _LOW) | ((second & _LOW) << 4)
    high = ((first >> 4) & _LOW) | (second & ~_LOW)
    pairs = low.view(torch.uint8).to(torch.int16) | (high.view(torch.uint8).to(torch.int16) << 8)
    blocks = torch.empty(*scale.shape, 5, dtype=torch.int32)
    blocks[..., 0] = torch.stack([scale, _offset(scale, zero)], -1).view(torch.int32)[..., 0]
    blocks[..., 1:] = pairs.view(torch.int32).view(*scale.shape, 4)
    return blocks.view(torch.uint8)


def _nibbles_taken(blocks: Tensor) -> Tensor:
    """The reverse: blocks (out, blocks, 20) -> codes packed as ours (out, packed row)."""
    pairs = blocks.view(torch.int32)[..., 1:].contiguous().view(torch.int16)
    low, high = ((pairs >> shift & 255).to(torch.uint8).view(torch.int64) for shift in (0, 8))
    first = (low & _LOW) | ((high & _LOW) << 4)
    second = ((low >> 4) & _LOW) | (high & ~_LOW)
    return torch.stack([first, second], -1).view(torch.uint8).flatten(1)


def _words(packed: Tensor) -> tuple[Tensor, Tensor]:
    """First and second half of every 16 packed bytes, as int64 (out, bytes / 16)."""
    words = (
        packed.cpu().clone(memory_format=torch.contiguous_format).view(torch.int64).unflatten(1, (-1, 2))
    )  # a copy begins at a whole word
    return words[..., 0].contiguous(), words[..., 1].contiguous()


def _by_block(packed: Quantized, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (out, blocks, size) uint8, scales (out, blocks) float16 and zero-points (out, blocks) uint8."""
    codes = unpack(packed.codes.cpu(), packed.bits, packed.columns).view(len(packed.codes), -1, size)
    return codes, *_scales(packed, size)


def _scales(packed: Quantized, size: int) -> tuple[Tensor, Tensor]:
    """Scales (out, blocks) float16 and zero-points (out, blocks) uint8."""
    scales, groups = packed.scales.cpu(), packed.scales.shape[1]
    zeros = torch.full(scales.shape, SYMMETRIC_ZERO, dtype=torch.uint8)
    if packed.zeros is not None:
        zeros = unpack(packed.zeros.cpu(), packed.bits, groups)
    each, blocks = packed.group // size, packed.columns // size
    return tuple(t.repeat_interleave(each, 1)[:, :blocks].contiguous() for t in (scales, zeros))


def _bytes(t: Tensor) -> Tensor:
    """float16 (out, blocks) -> (out, blocks, 2) uint8."""
    return t[..., None].contiguous().view(torch.uint8)


def _halves(blocks: Tensor) -> Tensor:
    """(out, blocks, 2) uint8 -> float32 (out, blocks)."""
    return blocks.contiguous().view(torch.float16)[..., 0].float()


def _offset(scale: Tensor, zero: Tensor) -> Tensor:
    return (scale.float() * -zero.float()).half()


def _q4_1(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    nibbles = codes[..., :16] | (codes[..., 16:] << 4)
    return torch.cat([_bytes(scale), _bytes(_offset(scale, zero)), nibbles], -1)


def _read_q4_1(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    nibbles = blocks[..., 4:]
    codes = torch.cat([nibbles & 15, nibbles >> 4], -1)
    return codes, _halves(blocks[..., :2]), _halves(blocks[..., 2:4])


def _q5_1(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    low = codes & 15
    nibbles = low[..., :16] | (low[..., 16:] << 4)
    return torch.cat([_bytes(scale), _bytes(_offset(scale, zero)), _bits(codes >> 4, 8), nibbles], -1)


def _read_q5_1(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    codes = torch.cat([blocks[..., 8:] & 15, blocks[..., 8:] >> 4], -1) | (_unbits(blocks[..., 4:8], 8) << 4)
    return codes, _halves(blocks[..., :2]), _halves(blocks[..., 2:4])


def _bits(flags: Tensor, each: int) -> Tensor:
    """(..., n) of 0 and 1 -> (..., n / each), the first in the lowest bit."""
    shifts = torch.arange(each, dtype=torch.uint8)
    return (flags.unflatten(-1, (-1, each)) << shifts).sum(-1, dtype=torch.uint8)


def _unbits(packed: Tensor, each: int) -> Tensor:
    return (packed[..., None] >> torch.arange(each, dtype=torch.uint8) & 1).flatten(-2)


def _q8_0(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.cat([_bytes(scale), codes - zero[..., None]], -1)  # as int8, modulo 256


def _read_q8_0(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d = _halves(blocks[..., :2])
    return blocks[..., 2:] + SYMMETRIC_ZERO, d, d * -SYMMETRIC_ZERO


def _q2_k(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    sub = (1 | (zero << 4))[..., None].expand(*zero.shape, 16)
    four = codes.unflatten(-1, (2, 4, 32))  # column 128 h + 32 i + j in bits 2 i of byte 32 h + j
    quarters = four[..., 0, :] | (four[..., 1, :] << 2) | (four[..., 2, :] << 4) | (four[..., 3, :] << 6)
    return torch.cat([sub, quarters.flatten(-2), _bytes(scale), _bytes(scale)], -1)


def _read_q2_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sub, quarters = blocks[..., :16], blocks[..., 16:80].unflatten(-1, (2, 1, 32))
    codes = torch.cat([quarters >> shift & 3 for shift in (0, 2, 4, 6)], -2).flatten(-3)
    return codes, *_common(blocks[..., 80:82], blocks[..., 82:], sub & 15, sub >> 4)


def _k_head(scale: Tensor, zero: Tensor) -> Tensor:
    """d, dmin and the packed 6-bit pairs (1, z) of eight sub-blocks: a and b of the first four in a byte
    each, of the last four in the nibbles of a third one and the highest bits of these."""
    one = torch.ones_like(zero)
    first, minimum, last = one, (zero & 63) | ((zero >> 4) << 6), one | (zero << 4)
    pairs = torch.stack([first, minimum, last], -1).repeat_interleave(4, -1)
    return torch.cat([_bytes(scale), _bytes(scale), pairs], -1)


def _read_k_head(blocks: Tensor) -> tuple[Tensor, Tensor]:
    first, minimum, last = (blocks[..., i : i + 4] for i in (4, 8, 12))
    a = torch.cat([first & 63, (last & 15) | (first >> 6 << 4)], -1)
    b = torch.cat([minimum & 63, (last >> 4) | (minimum >> 6 << 4)], -1)
    return _common(blocks[..., :2], blocks[..., 2:4], a, b)


def _common(d: Tensor, dmin: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """d and m of a block whose sub-blocks agree; those of one that do not are no numbers."""
    alike = (a == a[..., :1]).all(-1) & (b == b[..., :1]).all(-1)
    d, m = _halves(d) * a[..., 0], _halves(dmin) * -b[..., 0].float()
    return d.where(alike, torch.nan), m.where(alike, torch.nan)


def _q4_k(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    pairs = codes.unflatten(-1, (4, 2, 32))  # column 64 i + j in the low nibble of byte 32 i + j, + 32 above
    nibbles = (pairs[..., 0, :] | (pairs[..., 1, :] << 4)).flatten(-2)
    return torch.cat([_k_head(scale, zero), nibbles], -1)


def _read_q4_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    nibbles = blocks[..., 16:].unflatten(-1, (4, 1, 32))
    return torch.cat([nibbles & 15, nibbles >> 4], -2).flatten(-3), *_read_k_head(blocks)


def _q5_k(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    high = _bits((codes >> 4).unflatten(-1, (8, 32)).transpose(-1, -2).flatten(-2), 8)
    low = _q4_k(codes & 15, scale, zero)
    return torch.cat([low[..., :16], high, low[..., 16:]], -1)


def _read_q5_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    high = _unbits(blocks[..., 16:48], 8).unflatten(-1, (32, 8)).transpose(-1, -2).flatten(-2)
    codes, d, m = _read_q4_k(torch.cat([blocks[..., :16], blocks[..., 48:]], -1))
    return codes | (high << 4), d, m


_WRITE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "Q4_1": _q4_1,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
}
READ: dict[str, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "Q4_1": _read_q4_1,
    "Q5_1": _read_q5_1,
    "Q8_0": _read_q8_0,
    "Q2_K": _read_q2_k,
    "Q4_K": _read_q4_k,
    "Q5_K": _read_q5_k,
}
