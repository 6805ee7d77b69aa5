"""KL(p || q) from full precision, mean over positions, with its gradient made in the same pass.

    L = 1/T sum_t sum_v p_tv (log p_tv - log q_tv)         q = softmax(logits);  dL/dlogits = (q - p) / T

Autograd through log_softmax would keep and pass over five tensors of the size of the logits, 100 MB each for
512 tokens of a 49,152-word vocabulary; here one is kept, and rows are handled in chunks that stay in the
cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quept.evaluate.forward import chunks

LEAST_VARIANCE = 1e-3  # channels that never move weigh no more than this


def divergence_loss(logits: Tensor, log_probs: Tensor) -> Tensor:
    """logits (..., V) of the model in training, log_probs (..., V) of full precision -> scalar."""
    return _Divergence.apply(logits, log_probs)


def divergences(logits: Tensor, log_probs: Tensor) -> Tensor:
    """The same of each sample by itself: (n, ..., V) -> (n,) on the CPU."""
    pairs = zip(logits.split(1), log_probs.split(1), strict=True)
    return torch.stack([divergence_loss(q, p) for q, p in pairs]).cpu()


def features_loss(found: Sequence[Tensor], wanted: Sequence[Tensor], axis: int) -> Tensor:
    """Sum over blocks of the squared error of what they give, relative to the variance of each channel (of
    `axis`) at full precision, a mean over channels -> scalar."""
    total = torch.zeros((), device=found[0].device)
    for x, y in zip(found, wanted, strict=True):
        rest = [i for i in range(y.ndim) if i != axis % y.ndim]
        error = (x.float() - y).square().mean(rest)
        total = total + (error / (y.var(rest) + LEAST_VARIANCE)).mean()
    return total


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, log_probs: Tensor) -> Tensor:
        q, p = logits.flatten(0, -2), log_probs.flatten(0, -2)
        grad = torch.empty_like(q)
        total = torch.zeros((), dtype=torch.float64, device=q.device)
        for rows in chunks(*q.shape, q.device):
            log_q = q[rows].float().log_softmax(-1)
            log_p = p[rows].float()
            probabilities = log_p.exp()
            total += (log_p - log_q).mul_(probabilities).sum(dtype=torch.float64)
            grad[rows] = log_q.exp_().sub_(probabilities).div_(len(q))
        ctx.save_for_backward(grad.view_as(logits))
        return (total / len(q)).float()

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * upstream, None
