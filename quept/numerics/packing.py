"""Codes of 2..8 bits <-> bytes, exactly, along the last axis.

Eight codes of b bits fill exactly b bytes: code i of the eight sits at bits [b*i, b*(i+1)) of one
little-endian word. A row whose length is not a multiple of eight is filled up with zero codes, so a row of n
codes takes ceil(n/8) * b bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def packed_bytes(n: int, bits: int) -> int:
    """Bytes that one row of n codes takes."""
    return -(-n // 8) * bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes (..., n) uint8, each below 2**bits -> bytes (..., packed_bytes(n, bits)) uint8."""
    _check_bits(bits)
    n = codes.shape[-1]
    if n % 8:
        codes = torch.nn.functional.pad(codes, (0, -n % 8))
    if bits == 8:
        return codes.clone(memory_format=torch.contiguous_format)  # never the caller's own memory
    eight = codes.reshape(*codes.shape[:-1], -1, 8)
    columns = [torch.zeros_like(eight[..., 0]) for _ in range(bits)]
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        columns[byte] |= eight[..., i] << shift
        if shift + bits > 8:
            columns[byte + 1] |= eight[..., i] >> (8 - shift)
    return torch.stack(columns, dim=-1).reshape(*codes.shape[:-1], packed_bytes(n, bits))


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """bytes (..., packed_bytes(n, bits)) uint8 -> codes (..., n) uint8; the inverse of `pack`."""
    _check_bits(bits)
    if packed.shape[-1] != packed_bytes(n, bits):
        raise ValueError(
            f"{n} codes of {bits} bits take {packed_bytes(n, bits)} bytes; got {packed.shape[-1]}"
        )
    if bits == 8:
        return packed[..., :n].clone(memory_format=torch.contiguous_format)
    columns = packed.reshape(*packed.shape[:-1], -1, bits)
    mask = (1 << bits) - 1
    eight = torch.empty(*columns.shape[:-1], 8, dtype=torch.uint8, device=packed.device)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        code = columns[..., byte] >> shift
        if shift + bits > 8:
            code = code | (columns[..., byte + 1] << (8 - shift))
        eight[..., i] = code & mask
    return eight.reshape(*packed.shape[:-1], -1)[..., :n]


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2..8; got {bits}")
