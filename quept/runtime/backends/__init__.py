"""How a stored layer is multiplied: one file and one entry of BACKENDS each.

dense    the values in the compute dtype, torch's own product
packed   packed codes: a few rows by kernels of quept.kernels, many unpacked in passing
cuda     the same on CUDA, by Triton
scratch  buffers that layers are unpacked into

A backend makes of what an engine stores the *weight* that it multiplies by, which the bank keeps, and gives
the module that does it: `ready(stored, values) -> weight` (anything with `nbytes`) and
`linear(...) -> module`, whose `bound(weight, bits)` is the same layer with a weight.
"""

from __future__ import annotations

import torch

from .cuda import PackedCuda
from .dense import BoundLinear, Dense, Weight
from .packed import Packed

BACKENDS: dict[str, type[Dense]] = {"cpu": Packed, "cuda": PackedCuda}  # by device


def backend_for(device: torch.device, dtype: torch.dtype) -> Dense:
    """Returns the backend that multiplies in this dtype on this device: the dense one where the device's own
    is missing."""
    backend = BACKENDS.get(device.type, Dense)
    return Dense(dtype, device) if backend.missing(device, dtype) else backend(dtype, device)
