"""The layer of a view: every token is multiplied by the leading bits that it got.

Tokens of equal depth go together, many in one product with the values of that depth, a few by the slices
themselves (see `planes`); slices that no token asked for are not read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..reports import report
from .router import depths

REPORTED = "bits per token"


class NestedLinear(nn.Module):
    """x (..., in) -> (..., out). stored: of one layer, see `engine`. thresholds (3,): of the layer's router;
    None: every token gets `bits`, otherwise at most so many."""

    def __init__(self, stored, bits: int, thresholds: Tensor | None, bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        rows, columns = stored.shape
        self.__dict__.update(  # none is a module or parameter, and a view makes hundreds of these
            {"stored": stored, "bits": bits, "thresholds": thresholds, "bias": bias, "dtype": dtype},
            out_features=rows,
            in_features=columns,
        )

    @property
    def weight(self) -> Tensor:
        """The values (out, in) at the most bits that a token can get."""
        return self.stored.values(self.bits).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        count = self.in_features * self.out_features
        if self.thresholds is None:
            report(REPORTED, x.new_full(x.shape[:-1], self.bits), count)
            return self._at(self.bits, x)
        got = depths(self.stored.router.scores(x), self.thresholds, self.bits)
        report(REPORTED, got.float(), count)
        found = got.unique().tolist()
        if len(found) == 1:
            return self._at(found[0], x)
        flat, got = x.reshape(-1, self.in_features), got.reshape(-1)
        y = x.new_empty(len(flat), self.out_features)
        for bits in found:
            rows = (got == bits).nonzero()[:, 0]
            y[rows] = self._at(bits, flat[rows])
        return y.view(*x.shape[:-1], self.out_features)

    def _at(self, bits: int, x: Tensor) -> Tensor:
        return self.stored.product(x, bits, self.bias)
