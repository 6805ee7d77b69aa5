"""The dense backend: a weight as values in the compute dtype, multiplied by torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from quept.engines.base import Stored
from quept.models.clone import caster, hooks_when_asked
from quept.numerics.grid import Rounding, fake_quantize_tokens
from quept.numerics.hadamard import hadamard_transform
from quept.numerics.static import fake_quantize_static
from quept.plan import FULL, Bits

Weight = Tensor | Stored  # values in the compute dtype, or something that the backend knows to multiply by


@dataclass(frozen=True)
class Dense:
    """See the package docstring. device: where weights lie and are multiplied."""

    dtype: torch.dtype
    device: torch.device = torch.device("cpu")

    @classmethod
    def missing(cls, device: torch.device, dtype: torch.dtype) -> str:
        """Returns why this backend does not run in this dtype on this device; "" if it does."""
        return ""

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the buffers that weights are unpacked into to be multiplied."""
        return 0

    def let_go(self) -> None:
        """Gives back those buffers."""

    def ready(self, stored: Stored | None, values: Callable[[], Tensor]) -> Weight:
        """Returns what a layer is multiplied by: what an engine stored of it, None for an untouched one, and
        its values (out, in), made when they are asked for."""
        return values().to(self.dtype)

    def stored(self, weight: Weight) -> Stored | None:
        """Returns what `ready` made a weight of, to the bit; None where it cannot be told from it."""
        return None

    def rounded(self, rounding: Callable[[], Rounding | None]) -> Weight | None:
        """Returns what a layer is multiplied by straight from what is to be rounded, if its engine says that;
        None where the backend takes it from the engine, by `ready`."""
        return None

    def untouched(self, weight: Tensor) -> Weight | None:
        """Returns what a layer that nobody quantized is multiplied by without a copy of its weight; None
        where it takes one."""
        return weight if (weight.dtype, weight.device.type) == (self.dtype, self.device.type) else None

    def over(self, module: nn.Module, weight: Weight) -> nn.Module | None:
        """Returns an embedding or a head over a weight that is no tensor; None where it has to be one."""
        return None

    def linear(
        self, shape: tuple[int, int], bias: Tensor | None, online: bool, static: Mapping[int, Tensor]
    ) -> BoundLinear:
        empty = torch.empty(shape, dtype=self.dtype, device="meta")
        return BoundLinear(empty, bias, Bits(), online, static)


@hooks_when_asked
class BoundLinear(nn.Module):
    """x (..., in) -> (..., out) with a weight (out, in) that is already on its grid; x is rounded if asked to
    be, after a Hadamard transform where the weight holds the other half of one (`online`).

    static: `{bits: (2, sites)}`, the grids of the input and, of a layer that gives query, key and value, of
    these three, which are what attention multiplies. A width without a grid is rounded per token, and then
    the output is left alone."""

    _cast: Callable[[], BoundLinear] | None = None

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

    def bound(self, weight: Weight, bits: Bits) -> BoundLinear:
        """The same layer with this weight; cheap, since a view needs one for every layer."""
        other = (self._cast or self._caster())()
        other.__dict__["bits"] = bits
        other.__dict__["_buffers"]["weight"] = weight
        return other

    def _caster(self) -> Callable[[], BoundLinear]:
        """What copies are made by: one for all views."""
        self.__dict__["_cast"] = made = caster(self)
        return made

    def at(self, bits: Bits) -> BoundLinear:
        """The same layer with the same weight and other bits."""
        return self.bound(self.weight, bits)

    def product(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.online:
            x = hadamard_transform(x)
        bits = self.bits.activations
        if bits == FULL:
            return self.product(x)
        if bits not in self._grids:
            return self.product(fake_quantize_tokens(x, bits))
        before, *after = self._grids[bits]
        y = self.product(fake_quantize_static(x, (before,), bits))
        return fake_quantize_static(y, after, bits) if after else y

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, W{self.bits.weights} A{self.bits.activations}"
