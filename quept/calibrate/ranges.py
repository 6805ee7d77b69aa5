"""The ends of the range of each group of a weight, searched: clip factors with the least squared error.

    error = sum over columns of c_j (w'_j - w_j)^2        c: how much each column counts, (in,)

Both ends are drawn in alike first, then each by itself, as far as that helps a group. At few bits the points
of a grid lie so far apart that a weight at an end, cut off, is the smaller error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quept.numerics.grid import grouped, scale_and_zero

TRIED = tuple(1 - 0.05 * i for i in range(13))  # factors of both ends
BESIDE = (0.85, 0.92, 1.08, 1.16)  # of one end, times the best of those


@torch.no_grad()
def searched_factors(weight: Tensor, bits: int, group: int, counts: Tensor) -> Tensor:
    """weight (out, in), counts (in,) -> factors (2, out, groups) in (0, 1], low end first."""
    x, counts, top = grouped(weight.float(), group), grouped(counts[None], group), 2**bits - 1

    def error(ends: Tensor) -> Tensor:
        scale, zero, _, _ = scale_and_zero(x, bits, *ends[..., None])
        rounded = (x / scale).round_().add_(zero).clamp_(0, top).sub_(zero).mul_(scale)
        return (rounded.sub_(x).square_() * counts).sum(-1)

    best = torch.ones(2, *x.shape[:2], device=x.device)
    least, both = error(best), torch.ones_like(best)
    low, high = (torch.tensor([i, 1 - i], device=x.device)[:, None, None] for i in (1.0, 0.0))
    moves = [(both, factor) for factor in TRIED] + [(end, f) for end in (low, high) for f in BESIDE]
    for of, factor in moves:
        start = torch.ones_like(best) if of is both else best
        ends = (start * (1 + (factor - 1) * of)).clamp(max=1)
        found = error(ends)
        better = found < least
        least, best = torch.where(better, found, least), torch.where(better, ends, best)
    return best
