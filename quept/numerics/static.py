"""The static grid of activations: a scale and a zero-point for a whole tensor, found before the model runs.

    s = (hi - lo) / (2^b - 1)     z = round(-lo / s)     x' = (clamp(round(x / s) + z, 0, 2^b - 1) - z) * s

with lo <= 0 <= hi, so that the zero-point is a code. A tensor may hold several *sites* side by side along its
last axis, each on a grid of its own: query, key and value, which one layer of a vision transformer gives.
A grid is a tensor (2, sites) float32, scales and zero-points.

`search` finds the ends as PTQ4ViT and RepQ-ViT do (arXiv 2111.12293, 2212.08254): of a few percentiles those
that lose least, in mean squared error, on samples of the activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import torch
from torch import Tensor

TINY = 1e-8  # smallest scale: a site that is always zero stays zero


def grid_between(low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Ends (sites,) of the ranges -> grid (2, sites) float32."""
    top = 2**bits - 1
    scale = ((high.clamp(min=0) - low.clamp(max=0)).float() / top).clamp(min=TINY)
    return torch.stack([scale, (-low.clamp(max=0) / scale).round_().clamp_(0, top)])


def fake_quantize_static(x: Tensor, grid: Sequence[tuple[float, int]], bits: int) -> Tensor:
    """Activations (..., features) on their grid, (scale, zero-point) of each site; same dtype."""
    parts = [
        torch.fake_quantize_per_tensor_affine(part, scale, zero, 0, 2**bits - 1)
        for part, (scale, zero) in zip(x.chunk(len(grid), -1), grid, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def search(
    samples: Tensor, widths: Iterable[int], percentiles: Iterable[float]
) -> dict[int, tuple[float, float]]:
    """samples of one site, any shape -> `{bits: (low, high)}`: of the ends that keep a share p or q of the
    samples on either side, p and q from `percentiles` (1: all of them), those with the least squared error.
    """
    x = samples.detach().float().flatten().sort().values
    n = len(x)
    kept = [min(n, max(1, round(p * n))) for p in percentiles]
    lows = {float(x[n - k].clamp(max=0)) for k in kept}
    highs = {float(x[k - 1].clamp(min=0)) for k in kept}
    found = {}
    for bits in widths:
        errors = {ends: _squared_error(x, *ends, bits) for ends in product(sorted(lows), sorted(highs))}
        found[bits] = min(errors, key=errors.__getitem__)
    return found


def _squared_error(x: Tensor, low: float, high: float, bits: int) -> float:
    scale, zero = grid_between(*torch.tensor([low, high], dtype=torch.float32), bits).tolist()
    rounded = torch.fake_quantize_per_tensor_affine(x, scale, int(zero), 0, 2**bits - 1)
    return (rounded - x).square_().sum(dtype=torch.float64).item()
