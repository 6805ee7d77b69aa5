"""The rounding grids as functions that can be trained through: straight-through rounding, learned ends.

Forward gives exactly the values of `grid.quantize(x, bits, group, low, high)`. Backward treats rounding (of
codes, of zero-points, of scales to float16) as the identity. With g = dL/dx' the gradient that comes in, u =
x / s, r = round(u), and lo', hi' the clipped ends of a group of columns:

    dL/dx   = g                   inside the range, 0 outside
    dL/ds   = sum g (r - u)       over the group's columns inside, s = (hi' - lo') / (2^b - 1)
    dL/dhi' = dL/ds / (2^b - 1) + sum of g over columns above the range
    dL/dlo' = -dL/ds / (2^b - 1) + sum of g over columns below it
    hi'     = max(0, max x) * high,   lo' = min(0, min x) * low        (the ends themselves are held constant)

which is LSQ's gradient (arXiv 1902.08153) written for QuEPT's clip factors. 8 bits are symmetric and never
clipped: nothing but x receives a gradient there. The static grid of activations is trained by the same rule,
with lo' and hi' themselves as what is learned.

Cost: about 12 passes forward and 6 backward over the weight, all of them plain float arithmetic. Masks are
avoided on purpose: a boolean mask costs as much as ten multiplications on a CPU, so being outside is a float
o in {-1, 0, 1}, and inside is 1 - o^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import SYMMETRIC_BITS, fake_quantize_tokens, grouped, scale_and_zero
from .static import TINY as TINY_STEP


def round_to_grid(x: Tensor, bits: int, group: int, low: Tensor, high: Tensor) -> Tensor:
    """x (out, in) float -> its values on the grid (out, in), differentiable in x, low and high.

    low, high (out, groups): clip factors in (0, 1] of the lower and upper end of each group's range. Raises
    ValueError for a weight that is not finite, as `grid.quantize` does."""
    return _RoundToGrid.apply(x, low, high, bits, group)


def round_static(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Activations (..., features) on the static grid of each site, differentiable in x and in the ends low <=
    0 <= high (sites,) of the ranges. Forward gives the values of `static.fake_quantize_static`. PyTorch's own
    learnable rounding gives the gradients of scale and zero-point, LSQ's as above."""
    top = 2**bits - 1
    scales = ((high - low) / top).clamp(min=TINY_STEP)
    sites = zip(x.chunk(len(low), -1), scales, -low / scales, strict=True)
    parts = [
        torch._fake_quantize_learnable_per_tensor_affine(part, scale[None], zero[None], 0, top, 1.0)
        for part, scale, zero in sites
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def round_tokens(x: Tensor, bits: int) -> Tensor:
    """Activations (..., features) on their dynamic grid, one scale a token; the gradient passes straight
    through."""
    return x + (fake_quantize_tokens(x.detach(), bits) - x.detach())


class _RoundToGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, low: Tensor, high: Tensor, bits: int, group: int) -> Tensor:
        rows, columns = x.shape
        g = grouped(x, group)
        scale, zero, lo, hi = scale_and_zero(g, bits, low[..., None], high[..., None])
        top = 2**bits - 1
        values, outside, error = _rounded(g / scale, scale, zero, top)
        if bits == SYMMETRIC_BITS:
            ctx.save_for_backward(outside)
        else:
            ctx.save_for_backward(outside, _inside(error, outside), lo, hi)
        ctx.group, ctx.top = group, top
        return values.reshape(rows, -1)[:, :columns].contiguous()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        outside, *ranges = ctx.saved_tensors
        g = grouped(grad, ctx.group)
        over = g * outside  # signed: + above, - below
        both = over * outside
        grad_x = (g - both).reshape(grad.shape[0], -1)[:, : grad.shape[1]]
        if not ranges:
            return grad_x, None, None, None, None
        error, lo, hi = ranges
        grad_lo, grad_hi = _at_ends((g * error).sum(-1) / ctx.top, over.sum(-1), both.sum(-1))
        return grad_x, grad_lo * lo[..., 0], grad_hi * hi[..., 0], None, None


def _rounded(u: Tensor, scale: Tensor, zero: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """u = x / s -> values on the grid; o, which is -1, 0 or 1 below, inside and above it; r - u."""
    rounded = u.round()
    error = rounded - u
    q = rounded.add_(zero)
    codes = q.clamp(0, top)
    outside = q.sub_(codes).clamp_(-1, 1)
    return codes.sub_(zero).mul_(scale), outside, error


def _inside(error: Tensor, outside: Tensor) -> Tensor:
    """The error inside the range, 0 outside; `error` is used up."""
    return error.mul_(outside.square().neg_().add_(1))


def _at_ends(by_scale: Tensor, above_less_below: Tensor, above_and_below: Tensor) -> tuple[Tensor, Tensor]:
    """(dL/dlo', dL/dhi') from dL/ds / (2^b - 1) and the sums of g outside."""
    grad_hi = by_scale + (above_and_below + above_less_below) / 2
    grad_lo = -by_scale + (above_and_below - above_less_below) / 2
    return grad_lo, grad_hi
