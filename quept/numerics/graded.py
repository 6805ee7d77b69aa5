"""A token embedding at a graded width: rows of common tokens get more bits than those of rare ones.

What rounding a row costs goes with how often its token is read and expected. Tokenizers number their tokens
about in the order of how common they are (byte-pair encodings in the order in which they merged them), and
how common a token is falls off a little faster than as one over its number. So of N rows at b + 1/2 bits

    row r has  min(8, b + k) bits,  k the number of powers of three, 3, 9, 27, ..., with  r < N / 3^k

cut at whole tiles of rows: two thirds at b bits, two ninths at b + 1, and so on, b + 1/2 on average where no
row meets the end of 8 bits. Each stretch of rows is on its own grid of one width (see grid).

Three, and the tokenizer's order, are about the best there is. Let a row of SmolLM2 count as the probability
that the model gives its token, or as how often the token is read, times the row's mean square times 4^-bits:
on 2,048 tokens of BoolQ passages and 6,144 of WikiText-2's validation split the same cost takes 0.04 bits
more at a ratio of 2.5, 0.01 less at 3.5 and 4, 0.01 more at 6, 0.75 more with one width for all rows; in the
order counted on another of three texts between 0.1 bits less and 0.1 more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .grid import Quantized, dequantize, quantize, quantized_bytes

TILE = 16  # rows that a stretch is a multiple of, but for the last one
WIDEST = 8


@dataclass(frozen=True)
class Graded:
    """The stretches of one weight (rows, columns), from the first row on."""

    parts: tuple[Quantized, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


def stretches(rows: int, width: float) -> Iterator[tuple[slice, int]]:
    """Yields which of so many rows stand together, from the first on, and their bits at b + 1/2."""
    lowest, start = int(width), 0
    for more in range(WIDEST - lowest, -1, -1):
        stop = rows // (3**more * TILE) * TILE if more else rows
        if stop > start:
            yield slice(start, stop), lowest + more
            start = stop


def quantize_graded(weight: Tensor, width: float, group: int) -> tuple[Graded, Tensor]:
    """weight (rows, columns) -> (its packed form, its values on the grids (rows, columns) float32)."""
    made = [quantize(weight[rows], bits, group) for rows, bits in stretches(len(weight), width)]
    return Graded(tuple(packed for packed, _ in made)), torch.cat([values for _, values in made])


def dequantize_graded(packed: Graded) -> Tensor:
    """The values on the grids, (rows, columns) float32: exactly those `quantize_graded` returned."""
    return torch.cat([dequantize(part) for part in packed.parts])


def graded_bytes(rows: int, columns: int, width: float, group: int) -> int:
    """Bytes of `quantize_graded(...)` for a weight of this shape, without making it."""
    return sum(quantized_bytes(r.stop - r.start, columns, bits, group) for r, bits in stretches(rows, width))
