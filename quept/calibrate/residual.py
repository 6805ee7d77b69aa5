"""What the residual stream has lost before a layer that adds to it.

Where a part of a block ends in a layer, y = W x, the stream behind it is

    b = h + s y        h: the stream that the part's norm reads;  s: a scale of each channel (LayerScale) or 1

In a rounded model the stream comes as h' and the layer is given x'. What restores b is not W' x' = W x, but

    W' x' = W x - (h' - h) / s

so a layer that is rounded can win back what all those before it lost, for every token. That a layer adds like
this is not written in a table of families: it is seen on one batch, and where it does not hold (a norm stands
behind the layer, tokens have another order there) nothing is asked of that layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

FITS = 1e-4  # of what is added, squared: rounding of the sums, no more


class Entered(nn.Module):
    """A norm that keeps what it was given last, as (rows, channels)."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self._norm = norm
        self.stream = torch.zeros(0, 0)

    def forward(self, x: Tensor) -> Tensor:
        self.stream = x.flatten(0, -2).float()
        return self._norm(x)


def ends_of_parts(layers: Sequence[str], norms: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """`{the last layer of each part of a block: the norm at which the part begins}`. layers: of the block, in
    the order in which data flows; norms: `{norm: the layers that read it}`, in that order too."""
    begins = [min(layers.index(reader) for reader in readers) for readers in norms.values()]
    return {layers[end - 1]: norm for norm, end in zip(norms, (*begins[1:], len(layers)), strict=False)}


def scale_of(before: Tensor, given: Tensor, behind: Tensor) -> Tensor | None:
    """Returns s, (channels,), with behind = before + s given, all (rows, channels); None where there is
    none."""
    if not before.shape == given.shape == behind.shape:
        return None
    added = behind - before
    squares = given.square().sum(0).clamp(min=torch.finfo(given.dtype).tiny)
    scale = (added * given).sum(0) / squares
    off = (added - scale * given).square().sum()
    return scale if off <= FITS * added.square().sum() else None


def owed(stream: Tensor, wanted: Tensor, scale: Tensor) -> Tensor:
    """(rows, channels): (h' - h) / s, none in a channel to which the layer adds nothing."""
    return torch.where(scale == 0, 0, (stream - wanted) / scale)
