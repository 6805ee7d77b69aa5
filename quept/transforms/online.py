"""The linear layer that passes its input through a Hadamard transform: y = hadamard_transform(x) W^T + b.

It stands in a rotated model where `down` was, whose weight holds the other half of the transform.
"""

from __future__ import annotations

from torch import Tensor, nn

from quept.models.clone import shallow_copy
from quept.numerics.hadamard import hadamard_transform


class HadamardLinear(nn.Linear):
    """x (..., in) -> (..., out)."""

    @classmethod
    def of(cls, linear: nn.Linear) -> HadamardLinear:
        """A layer with the parameters of this one."""
        other = object.__new__(cls)
        other.__dict__ = shallow_copy(linear).__dict__
        return other

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(hadamard_transform(x))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, online Hadamard"
