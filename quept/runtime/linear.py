"""The linear layer of a view: a weight bound from the bank, the bias of the source layer, and the width of
its input."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear

from quept.models.clone import twin
from quept.numerics.grid import fake_quantise_tokens
from quept.numerics.hadamard import hadamard_transform
from quept.plan import FULL, Bits


class BoundLinear(nn.Module):
    """x (..., in) -> (..., out) with a weight (out, in) that is already on its grid; x is rounded per token
    if asked to be, after a Hadamard transform where the weight holds the other half of one (`online`)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, bits: Bits, online: bool = False):
        super().__init__()
        # register_buffer keeps the bank's own tensor object, which its weak reference follows; nn.Buffer
        # would not
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.bits, self.online = bits, online
        self.out_features, self.in_features = weight.shape

    def bound(self, weight: Tensor, bits: Bits) -> BoundLinear:
        """The same layer with these values; cheap, since a view needs one for every layer."""
        other = twin(self)
        other.__dict__["bits"] = bits
        other._buffers["weight"] = weight
        return other

    def forward(self, x: Tensor) -> Tensor:
        if self.online:
            x = hadamard_transform(x)
        if self.bits.activations != FULL:
            x = fake_quantise_tokens(x, self.bits.activations)
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, W{self.bits.weights} A{self.bits.activations}"
