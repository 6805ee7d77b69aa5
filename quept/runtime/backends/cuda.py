"""The packed backend on CUDA: the codes that a CPU multiplies by, rounded and laid out there, lie on the
device, and Triton multiplies a few rows by them and unpacks them for many.

What nobody quantized is dense there. Triton comes with torch's builds for CUDA on Linux; laying codes out
takes the C kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor

from quept.engines.base import Stored
from quept.kernels import PackedWeight, missing
from quept.numerics.grid import Quantized, Rounding

from .dense import Dense, Weight
from .packed import Packed


@dataclass(frozen=True)
class PackedCuda(Packed):
    """See the module docstring."""

    @classmethod
    def missing(cls, device: torch.device, dtype: torch.dtype) -> str:
        if device.type != "cuda" or dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"Packed weights are multiplied on CUDA in up to 32 bits, not in {dtype} on {device}"
        if not find_spec("triton"):
            return "Weights are multiplied dense on CUDA: packed ones take Triton (pip install triton)"
        return missing()

    def ready(self, stored: Stored | None, values: Callable[[], Tensor]) -> Weight:
        if not isinstance(stored, Quantized):
            return Dense.ready(self, stored, values)
        return self._placed(PackedWeight.pack(replace(stored, **_on_cpu(stored))))

    def stored(self, weight: Weight) -> Stored | None:
        return super().stored(
            replace(weight, **_on_cpu(weight)) if isinstance(weight, PackedWeight) else weight
        )

    def rounded(self, rounding: Callable[[], Rounding | None]) -> Weight | None:
        weight = super().rounded(rounding)
        return weight and self._placed(weight)

    def untouched(self, weight: Tensor) -> Weight | None:
        return Dense.untouched(self, weight)

    def _placed(self, weight: PackedWeight) -> PackedWeight:
        from quept.kernels.triton_packed import TritonWeight  # here: importing it takes Triton

        return TritonWeight.of(weight, self.device)


def _on_cpu(weight: Quantized | PackedWeight) -> dict[str, Tensor | None]:
    """Its tensors, by name."""
    parts = {name: getattr(weight, name) for name in ("codes", "scales", "zeros")}
    return {name: None if part is None else part.cpu() for name, part in parts.items()}
