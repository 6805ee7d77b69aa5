"""What a view computes in while calibrating, bfloat16 products where the hardware has them and float32
elsewhere, and with which random numbers.

Weights, learned tensors, grids and losses stay float32 either way; a processor without bfloat16 instructions
takes three times as long with them, so it is left alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from quept.runtime.model import compute_dtype


def fast_products(device: torch.device) -> AbstractContextManager:
    """A context for the forward pass of a view on this device."""
    dtype = compute_dtype(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


@contextmanager
def seeded(device: torch.device, *what: object) -> Iterator[None]:
    """PyTorch's random numbers follow from `what` alone in here, and are nobody else's business."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(random.Random(repr(what)).getrandbits(63))
        yield
