"""What is computed in while calibrating: bfloat16 products where the hardware has them, float32 elsewhere.

Weights, learned tensors, grids and losses stay float32 either way; a processor without bfloat16 instructions
takes three times as long with them, so it is left alone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from quept.runtime.model import compute_dtype


def fast_products(device: torch.device) -> AbstractContextManager:
    """A context for the forward pass of a view on this device."""
    dtype = compute_dtype(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
