"""The dense backend: a weight as values in the compute dtype, multiplied by torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from quept.models.clone import shallow_copy
from quept.numerics.grid import fake_quantize_tokens
from quept.numerics.hadamard import hadamard_transform
from quept.numerics.static import fake_quantize_static
from quept.plan import FULL, Bits


@dataclass(frozen=True)
class Dense:
    """See the package docstring."""

    dtype: torch.dtype

    def ready(self, values: Tensor) -> Tensor:
        return values.to(self.dtype)

    def linear(
        self, shape: tuple[int, int], bias: Tensor | None, online: bool, static: Mapping[int, Tensor]
    ) -> BoundLinear:
        empty = torch.empty(shape, dtype=self.dtype, device="meta")
        return BoundLinear(empty, bias, Bits(), online, static)


class BoundLinear(nn.Module):
    """x (..., in) -> (..., out) with a weight (out, in) that is already on its grid; x is rounded if asked to
    be, after a Hadamard transform where the weight holds the other half of one (`online`).

    static: `{bits: (2, sites)}`, the grids of the input and, of a layer that gives query, key and value, of
    these three, which are what attention multiplies. A width without a grid is rounded per token, and then
    the output is left alone."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        bits: Bits,
        online: bool = False,
        static: Mapping[int, Tensor] | None = None,
    ):
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.bits, self.online = bits, online
        self._grids = {
            width: tuple((scale, int(zero)) for scale, zero in grid.T.tolist())
            for width, grid in (static or {}).items()
        }
        self.out_features, self.in_features = weight.shape

    def bound(self, weight: Tensor, bits: Bits) -> BoundLinear:
        """The same layer with these values; cheap, since a view needs one for every layer."""
        other = shallow_copy(self)
        other.__dict__["bits"] = bits
        other._buffers["weight"] = weight
        return other

    def forward(self, x: Tensor) -> Tensor:
        if self.online:
            x = hadamard_transform(x)
        bits = self.bits.activations
        if bits == FULL:
            return linear(x, self.weight, self.bias)
        if bits not in self._grids:
            return linear(fake_quantize_tokens(x, bits), self.weight, self.bias)
        before, *after = self._grids[bits]
        y = linear(fake_quantize_static(x, (before,), bits), self.weight, self.bias)
        return fake_quantize_static(y, after, bits) if after else y

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, W{self.bits.weights} A{self.bits.activations}"
