"""Arithmetic of elastic quantisation: pure functions on tensors, no models and no files.

grid      the rounding grid of one width: ranges, scales, zero-points, codes
packing   codes of 2..8 bits <-> bytes
"""

from .grid import Quantised, dequantise, fake_quantise_tokens, group_size, quantise
from .packing import pack, packed_bytes, unpack

__all__ = [
    "Quantised",
    "dequantise",
    "fake_quantise_tokens",
    "group_size",
    "pack",
    "packed_bytes",
    "quantise",
    "unpack",
]
