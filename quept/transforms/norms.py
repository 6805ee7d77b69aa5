"""Fold norms into the linear layers that read them, so that they only normalise.

A norm gives y = n * w + beta, n the normalised input (T, channels); a reader computes y W^T + b. Then

    W' = W diag(w)      b' = b + W beta      w' = 1      beta' = 0

with W and b in float64. A reader without a bias gets one where beta is not zero. The final norm goes into the
head, which first gets a weight of its own where it shared the embedding's. Norms inside attention (Qwen3's,
per head) stay as they are. First step of QuaRot and SliceGPT (arXiv 2404.00456, 2401.15024).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .rewriter import Rewriter


def fold_norms(rewriter: Rewriter) -> None:
    """Every norm before a linear layer becomes plain."""
    rewriter.untie()
    for name, norm in rewriter.norms.items():
        if norm.plain:
            continue
        for reader in rewriter.readers[name]:
            if norm.bias is not None:
                rewriter.edit(reader, lambda w, b, beta=norm.bias: (w, _absorbed(w, b, beta)))
            if norm.weight is not None:
                rewriter.columns(reader, lambda w, factor=norm.weight: w * factor)
        ones, zeros = (
            None if p is None else make(p)
            for p, make in ((norm.weight, torch.ones_like), (norm.bias, torch.zeros_like))
        )
        rewriter.norms[name] = replace(norm, weight=ones, bias=zeros)


def _absorbed(weight: Tensor, bias: Tensor | None, beta: Tensor) -> Tensor | None:
    """The bias (out,) that says what beta (in,) said."""
    more = weight @ beta
    return (more if more.any() else None) if bias is None else bias + more
