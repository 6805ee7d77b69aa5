"""Arithmetic of elastic quantization: pure functions on tensors, no models and no files.

grid      the rounding grid of one width: ranges, scales, zero-points, codes
graded    an embedding whose rows have more bits the more common their tokens are
nested    8-bit codes whose leading bits are the codes of every narrower width
static    the grid of activations whose range is known before the model runs
ste       the same grids as functions that can be trained through
adapters  cascaded low-rank adapters: which ranks each width uses
merge     multi-bit token merging: one stream of activations for all bit groups
hadamard  orthonormal Hadamard transforms of any width
packing   codes of 2..8 bits <-> bytes
"""

from .grid import Quantized, dequantize, fake_quantize_tokens, group_size, quantize
from .packing import pack, packed_bytes, unpack
