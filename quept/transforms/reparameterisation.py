"""Make the channels behind a LayerNorm alike, so that one scale fits them all: RepQ-ViT (arXiv 2212.08254).

A channel c of the norm's output ranges over [lo_c, hi_c], which differ wildly in vision transformers. With
the range relative to its mean, r_c = ((hi_c - lo_c) / mean(hi - lo))^strength, the middle m_c = (lo_c + hi_c)
/ 2 and d_c = m_c / r_c - mean(m / r), the norm and its readers become

    gamma' = gamma / r     beta' = beta / r - d     W' = W diag(r)     b' = b + W' d

so that the readers see x' = x / r - d instead of x and give what they gave. With strength 1 every channel of
x' has the same range, which is RepQ-ViT; less leaves more of the differences where they were, and the
weights, which are multiplied by r, easier to round.

A record holds r by the name of the norm and d by that name and `.shift`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from .record import SHIFT, Record, TransformError
from .rewriter import Rewriter


def reparameterisation(
    ranges: Mapping[str, tuple[Tensor, Tensor]], strength: float, percentile: float, images: int
) -> Record:
    """The record for these ranges, `{norm: (lowest, highest value of each channel)}`; percentile and images
    say how they were found."""
    tensors = {}
    for norm, (low, high) in ranges.items():
        width = (high - low).double()
        r = (width / width.mean()).clamp(min=1e-3).pow(strength)  # a channel that never moves stays finite
        middle = (low + high).double() / 2 / r
        tensors |= {norm: r.float(), norm + SHIFT: (middle - middle.mean()).float()}
    step = {"kind": "reparameterisation", "strength": strength, "percentile": percentile, "images": images}
    return Record((step,), tensors)


def reparameterise(rewriter: Rewriter, tensors: Mapping[str, Tensor]) -> None:
    """Move these, `{norm: r, norm.shift: d}`, into the norms and their readers; TransformError where they do
    not fit."""
    names = {name.removesuffix(SHIFT) for name in tensors}
    for name in sorted(names):
        norm, r, d = rewriter.norms.get(name), tensors.get(name), tensors.get(name + SHIFT)
        if norm is None or norm.weight is None or norm.bias is None:
            raise TransformError(f"{name} is no norm with weight and bias in this model")
        if r is None or d is None or not len(r) == len(d) == len(norm.weight):
            raise TransformError(f"{name} has scales or shifts for another number of channels")
        r, d = (t.to(norm.weight.device).double() for t in (r, d))
        rewriter.norms[name] = replace(norm, weight=norm.weight / r, bias=norm.bias / r - d)
        for reader in rewriter.readers[name]:
            rewriter.columns(reader, lambda w, r=r: w * r)
            rewriter.edit(reader, lambda w, b, d=d: (w, w @ d if b is None else b + w @ d))
