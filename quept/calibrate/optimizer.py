"""Adam over what is learned, each bit group at its own rate, and the schedule of the rates."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch.optim import Adam

from .trainable import Trainable


def adam(
    trainable: Trainable,
    adapter_rates: tuple[float, ...],
    clip_rate: float,
    layers: Iterable[str] | None = None,
    activation_rate: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Adam | None:
    """The optimizer of these layers (None: of all); None where they have nothing to learn. adapter_rates: of
    each bit group's own ranks, highest group first; activation_rate: of the ends of static grids."""
    layers = None if layers is None else list(layers)
    rated = [(trainable.parameters("clips", layers), clip_rate)]
    rated += [(trainable.parameters("static", layers), activation_rate)]
    rated += [(trainable.parameters("adapters", layers, g), peak) for g, peak in enumerate(adapter_rates)]
    groups = [{"params": params, "lr": peak, "peak": peak} for params, peak in rated if params]
    return Adam(groups, betas=betas) if groups else None


def step(optimizer: Adam, number: int, steps: int, warmup: int = 0) -> None:
    """Step `number` (from 0) of `steps` at its rate, and clear the gradients."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate(number, steps, warmup)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def rate(number: int, steps: int, warmup: int) -> float:
    """Factor of the rates at step `number` (from 0): a linear rise, then a cosine down to 1/100."""
    rise = min(1.0, (number + 1) / (warmup + 1))
    return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * number / steps)))
