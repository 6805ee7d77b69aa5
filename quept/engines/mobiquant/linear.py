"""The layer of a view: every token is multiplied by the leading bits that it got.

Tokens of equal depth go together, many in one product with the values of that depth, a few by the slices
themselves (see `planes`); slices that no token asked for are not read. Where one call reads a token (see
quept.runtime.decode) the choice is made there, by the same scores.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quept.kernels.decoder import Linear
from quept.kernels.nested import Routing
from quept.models.clone import caster, hooks_when_asked
from quept.numerics.nested import SLICE

from ..reports import BITS, report
from .router import depths


@hooks_when_asked
class NestedLinear(nn.Module):
    """x (..., in) -> (..., out). stored: of one layer, see `engine`. thresholds (3,): of the layer's router;
    None: every token gets `bits`, otherwise at most so many."""

    @classmethod
    def of(
        cls, stored, bits: int, thresholds: Tensor | None, bias: Tensor | None, dtype: torch.dtype
    ) -> NestedLinear:
        made = _cast()  # a view makes hundreds of these
        own = made.__dict__
        own["stored"], own["bits"], own["thresholds"] = stored, bits, thresholds
        own["bias"], own["dtype"] = bias, dtype
        return made

    @property
    def out_features(self) -> int:
        return self.stored.shape[0]

    @property
    def in_features(self) -> int:
        return self.stored.shape[1]

    @property
    def weight(self) -> Tensor:
        """The values (out, in) at the most bits that a token can get."""
        return self.stored.values(self.bits).to(self.dtype)

    @property
    def in_one_call(self) -> Linear | None:
        """The layer as quept.kernels.decoder reads it; None at odd bits, and without kernels."""
        slices = self.bits // SLICE
        if not self.stored.depths or self.bits % SLICE:
            return None
        if self.thresholds is None:
            return Linear(self.stored.depths[slices - 1], self.bias)
        return Linear(Routing(self.stored.choices, self.thresholds.tolist(), slices), self.bias)

    def forward(self, x: Tensor) -> Tensor:
        count = self.in_features * self.out_features
        if self.thresholds is None:
            report(BITS, x.new_full(x.shape[:-1], self.bits), count)
            return self._at(self.bits, x)
        got = depths(self.stored.router.scores(x), self.thresholds, self.bits)
        report(BITS, got.float(), count)
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


_cast = caster(NestedLinear())
