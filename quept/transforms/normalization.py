"""What a norm computes, asked of the norm itself.

    y = n (offset + w) + beta        n = x / rms(x), or (x - mean(x)) / std(x)

Families write w or 1 + w, and call epsilon by several names. `Norm.of(module)` finds the offset, and whether
the mean is subtracted, by running a copy of the module on a few random numbers; a step then reads and changes
what the norm multiplies by, and `put_into` writes it back as the module reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from quept.models.clone import shallow_copy

from .record import TransformError

CHANNELS = 8  # a norm without a weight is tried on
EPSILON = ("eps", "variance_epsilon", "epsilon", "norm_eps")


@dataclass(frozen=True, eq=False)
class Norm:
    """One norm as the steps see it. weight: what it multiplies by, offset included, and bias (channels,)
    float64, or None where it has none; `rms` if it does not subtract the mean; offset: what the module adds
    to the weight that it holds."""

    weight: Tensor | None
    bias: Tensor | None
    rms: bool
    offset: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether it only normalises."""
        ones = self.weight is None or bool((self.weight == 1).all())
        return ones and (self.bias is None or not self.bias.any())

    @classmethod
    def of(cls, module: nn.Module) -> Norm:
        """What this module computes; TransformError where it is none of the above."""
        weight, bias = (
            None if p is None else p.detach().double()
            for p in (getattr(module, key, None) for key in ("weight", "bias"))
        )
        draw, shape = torch.Generator().manual_seed(0), getattr(module, "normalized_shape", (CHANNELS,))
        x = 1 + torch.randn(4, shape[-1] if weight is None else len(weight), generator=draw)
        rms = x * x.square().mean(-1, keepdim=True).rsqrt()
        layer = nn.functional.layer_norm(x, x.shape[-1:])
        held = () if weight is None else (0.0, 1.0)
        for normed, is_rms in ((rms, True), (layer, False)):
            for offset in (0.0, 1.0) if held else (0.0,):
                found = [_run(module, x, w) for w in held or (None,)]
                wanted = [normed * (w + offset) for w in held] or [normed]
                if all(torch.allclose(f, w, atol=1e-2) for f, w in zip(found, wanted, strict=True)):
                    return cls(None if weight is None else weight + offset, bias, is_rms, offset)
        raise TransformError(
            f"{type(module).__name__} is no norm known here (x / rms or LayerNorm, times w or 1 + w): "
            "calibrate this model by a recipe without transforms"
        )

    def put_into(self, module: nn.Module, parameter: Callable[[Tensor], nn.Parameter]) -> nn.Module:
        """A copy of the module it is of that multiplies and adds this; an RMSNorm where it was a LayerNorm
        and is none any more, or has no place for a weight. parameter: what makes one of float64 values."""
        placeless = self.weight is not None and "weight" not in module._parameters
        if self.rms and (placeless or not Norm.of(module).rms):
            eps = next(getattr(module, name) for name in EPSILON if hasattr(module, name))
            size = getattr(module, "normalized_shape", None) or len(self.weight)
            made, norm = nn.RMSNorm(size, eps).train(module.training), replace(self, offset=0.0)
        else:
            made, norm = shallow_copy(module), self
        weight = norm.weight
        made._parameters["weight"] = None if weight is None else parameter(weight - norm.offset)
        if "bias" in made._parameters:
            made._parameters["bias"] = None if norm.bias is None else parameter(norm.bias)
        return made


def _run(module: nn.Module, x: Tensor, weight: float | None) -> Tensor:
    """What a copy of the module makes of x in float32 with this weight in every channel and no bias."""
    copy = shallow_copy(module)
    device = next((p.device for p in module.parameters()), x.device)
    copy._parameters = {
        key: None
        if p is None
        else torch.full_like(p, weight if key == "weight" else 0.0, dtype=torch.float32)
        for key, p in module._parameters.items()
    }
    with torch.no_grad():
        return copy(x.to(device)).float().cpu()
