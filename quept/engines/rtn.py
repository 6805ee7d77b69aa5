"""Elastic round-to-nearest, method zero: each width from 2 to 8 bits on its own grid, made from the base
weight when it is wanted. Nothing is learned, so nothing is stored beyond the base and the group. Token
embeddings have graded widths, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from quept.numerics.graded import Graded, dequantize_graded, graded_bytes, quantize_graded
from quept.numerics.grid import Quantized, Rounding, dequantize, group_size, quantized_bytes

from .base import Engine, Listing


@dataclass(frozen=True)
class Rtn(Engine):
    """group: columns that share a scale and a zero-point, or "auto" or "row"."""

    group: int | str
    title = "round-to-nearest"

    @classmethod
    def read(cls, listing: Listing, tensors: Mapping[str, Tensor]) -> Rtn:
        return cls(listing.group)

    def quantize(self, layer: str, weight: Tensor, setting: int | float) -> tuple[Quantized | Graded, Tensor]:
        rounding = self.rounding(layer, weight, setting)
        if rounding is None:
            return quantize_graded(weight, setting, group_size(weight.shape[1], self.group))
        return rounding.quantized()

    def rounding(self, layer: str, weight: Tensor, setting: int | float) -> Rounding | None:
        if isinstance(setting, float):
            return None
        return Rounding(weight, setting, group_size(weight.shape[1], self.group))

    def values(self, stored: Quantized | Graded, setting: int | float) -> Tensor:
        return dequantize_graded(stored) if isinstance(stored, Graded) else dequantize(stored)

    def key(self, setting: int) -> str:
        return f"rtn group {self.group} W{setting}"

    def nbytes(self, rows: int, columns: int, setting: int | float) -> int:
        size = graded_bytes if isinstance(setting, float) else quantized_bytes
        return size(rows, columns, setting, group_size(columns, self.group))
