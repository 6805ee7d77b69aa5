"""How a stored layer is multiplied: one file and one entry of BACKENDS each.

dense   the values in the compute dtype, torch's own product

A backend makes of what an engine stores the *weight* that it multiplies by, which the bank keeps, and gives
the module that does it: `ready(values) -> weight` (anything with `nbytes`) and `linear(...) -> module`, whose
`bound(weight, bits)` is the same layer with a weight.
"""

from __future__ import annotations

import torch

from .dense import BoundLinear, Dense

BACKENDS: dict[str, type[Dense]] = {"cpu": Dense, "cuda": Dense}  # by device


def backend_for(device: torch.device, dtype: torch.dtype) -> Dense:
    """Returns the backend that multiplies in this dtype on this device."""
    return BACKENDS.get(device.type, Dense)(dtype)
