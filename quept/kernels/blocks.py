"""A packed weight in llama.cpp's blocks of 32 columns, and blocks of a file held against it (c/blocks.c):
what quept.export.gguf.blocks does with stored codes, to the last bit, in one pass and without unpacking them.

order (out,) int64 says which rows follow one another in the blocks; None leaves them as they are. Shapes and
ranges are checked here; C trusts them.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .library import Pool, loaded
from .packed import BLOCK, PackedWeight

BYTES = {2: 20, 3: 20, 4: 20, 5: 24, 6: 34, 7: 34, 8: 34}  # of a block that holds codes of so many bits
SMALL = 1 << 22  # codes below which one thread takes no longer than several: memory is what it waits for


def fits(weight: object) -> bool:
    """Returns whether this is a weight whose codes C lays into blocks."""
    if not isinstance(weight, PackedWeight) or weight.codes.ndim != 2 or weight.scales is None:
        return False
    whole = weight.shape[1] % BLOCK == 0 and weight.group % BLOCK == 0
    return whole and weight.bits in BYTES and weight.codes.device.type == "cpu"


def to_blocks(weight: PackedWeight, order: Tensor | None = None, threads: int | None = None) -> Tensor:
    """Returns the blocks (out, blocks, bytes of a block) uint8 of a weight that `fits`."""
    pool, order = _checked(weight, order, threads)
    blocks = torch.empty(_shape(weight), dtype=torch.uint8)
    loaded().c.quept_to_blocks(
        pool, weight.structure, None if order is None else order.data_ptr(), blocks.data_ptr()
    )
    return blocks


def difference(
    weight: PackedWeight, blocks: Tensor, order: Tensor | None = None, threads: int | None = None
) -> float | None:
    """Returns by how much blocks that were read, contiguous bytes, differ from the values of a weight that
    `fits`, as a share of the largest value that its grid holds; None where codes or scales differ, or the
    offset by more than its rounding to float16."""
    pool, order = _checked(weight, order, threads)
    if blocks.dtype != torch.uint8 or blocks.numel() != _shape(weight).numel() or not blocks.is_contiguous():
        raise ValueError(f"{_shape(weight).numel()} contiguous bytes are compared; got {tuple(blocks.shape)}")
    found, given = (ctypes.c_float * 2)(), None if order is None else order.data_ptr()
    if loaded().c.quept_differs(pool, weight.structure, given, blocks.data_ptr(), found):
        return None
    off, largest = found
    return off / largest if largest else 0.0


def _shape(weight: PackedWeight) -> torch.Size:
    rows, columns = weight.shape
    return torch.Size((rows, columns // BLOCK, BYTES[weight.bits]))


def _checked(weight: PackedWeight, order: Tensor | None, threads: int | None) -> tuple[Pool, Tensor | None]:
    """The threads for a weight, and its order as C reads it; ValueError for what does not fit."""
    if not fits(weight):
        raise ValueError(f"blocks hold groups of whole {BLOCK} columns at 2..8 bits")
    rows, columns = weight.shape
    if order is not None:
        order = order.to(torch.int64).contiguous()
        if order.shape != (rows,) or not 0 <= int(order.min()) <= int(order.max()) < rows:
            raise ValueError(f"an order names each of {rows} rows; got {tuple(order.shape)}")
    threads = threads or (1 if rows * columns <= SMALL else None)
    return loaded().pool(threads), order
