"""PackedRows: one matrix whose stretches of rows have widths of their own (quept.numerics.graded), each a
PackedWeight; products, values and rows of all of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .packed import PackedWeight


@dataclass(frozen=True, eq=False)
class PackedRows:
    """parts: the stretches, from the first row on, all of as many columns. Read by any number of threads at
    once; never written to."""

    parts: tuple[PackedWeight, ...]

    def __deepcopy__(self, memo: dict) -> PackedRows:
        return self  # nobody writes to it

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def matmul(self, x: Tensor, bias: Tensor | None = None, **options) -> Tensor:
        """x (..., columns) -> (..., rows) float32, as `PackedWeight.matmul`."""
        y = torch.cat([part.matmul(x, **options) for part in self.parts], -1)
        return y if bias is None else y.add_(bias)

    def unpack(self, out: Tensor | None = None, **options) -> Tensor:
        """Writes the values (rows, columns) into a buffer and returns it, as `PackedWeight.unpack`."""
        out = torch.empty(self.shape, dtype=torch.float32) if out is None else out
        for part, rows in zip(self.parts, out.split([part.shape[0] for part in self.parts]), strict=True):
            part.unpack(rows, **options)
        return out

    def rows(self, ids: Tensor) -> Tensor:
        """ids (...) of any integer type -> their rows (..., columns) float32; IndexError for one that is not
        there."""
        out = torch.empty(*ids.shape, self.shape[1], dtype=torch.float32)
        left = ids.detach().to("cpu", torch.int64)
        if left.numel() and not 0 <= int(left.min()) <= int(left.max()) < self.shape[0]:
            raise IndexError(f"rows go from 0 to {self.shape[0] - 1}; got {int(left.min())}..{left.max()}")
        first = 0
        for part in self.parts:
            here = (left >= first) & (left < first + part.shape[0])
            out[here] = part.rows(left[here] - first)
            first += part.shape[0]
        return out
