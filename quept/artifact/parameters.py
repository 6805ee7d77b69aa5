"""What calibration learned of one linear layer, as an artifact stores it, and the weight it makes at any
width.

    b      (out, R)         float16    adapter, R = ranks of the schedule
    a      (R, in)          float16
    clip   (2, out, groups) uint8      for each width that clips: factors of the lower and the upper end,
                                       factor = (code + 1) / 256
    static (2, sites)       float32    for each width of its input: scale and zero-point of the input and,
                                       of a layer that gives query, key and value, of these three

A width that was not calibrated, or for which plain rounding proved better in this layer, is not in `widths`
and is rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from quept.numerics.adapters import RankSchedule, adapted
from quept.numerics.grid import Quantized, quantize

CLIP_STEPS = 256


@dataclass(frozen=True)
class LayerParameters:
    """See the module docstring. `clips` is `{bits: (2, out, groups)}`, `static` `{bits: (2, sites)}`: empty
    where activations are rounded by the range that each token has."""

    schedule: RankSchedule
    b: Tensor
    a: Tensor
    clips: Mapping[int, Tensor]
    widths: tuple[int, ...]
    static: Mapping[int, Tensor] = field(default_factory=dict)

    @classmethod
    def rounded(
        cls,
        schedule: RankSchedule,
        b: Tensor,
        a: Tensor,
        factors: Mapping[int, Tensor],
        widths: tuple[int, ...],
        static: Mapping[int, Tensor] | None = None,
    ) -> LayerParameters:
        """From float tensors; factors in (0, 1], (2, out, groups), low end first."""
        codes = {
            bits: f.mul(CLIP_STEPS).round_().sub_(1).clamp_(0, CLIP_STEPS - 1).to(torch.uint8).cpu()
            for bits, f in factors.items()
        }
        grids = {bits: grid.float().cpu() for bits, grid in (static or {}).items()}
        return cls(schedule, b.half().cpu(), a.half().cpu(), codes, widths, grids)

    def without(self, bits: int, grid: Tensor | None = None) -> LayerParameters:
        """The same layer with this width rounded to nearest, and activations of it on `grid` if there is
        one."""
        clips = {b: c for b, c in self.clips.items() if b != bits}
        static = self.static if grid is None else {**self.static, bits: grid}
        return replace(self, clips=clips, widths=tuple(b for b in self.widths if b != bits), static=static)

    def quantize(self, weight: Tensor, bits: int, group: int) -> tuple[Quantized, Tensor]:
        """The layer at 2..8 bits: packed, and as values (out, in) float32 on the grid."""
        if bits not in self.widths:
            return quantize(weight, bits, group)
        device = weight.device
        if self.schedule.ranks(bits):
            b, a = (t.to(device, torch.float32) for t in (self.b, self.a))
            weight = adapted(weight.float(), b, a, self.schedule, bits)
        if bits not in self.clips:
            return quantize(weight, bits, group)
        low, high = self.clips[bits].to(device).float().add_(1).div_(CLIP_STEPS)[..., None]
        return quantize(weight, bits, group, low, high)

    def tensors(self, layer: str) -> dict[str, Tensor]:
        """What is written, by name."""
        found = {f"{layer}.clip.{bits}": clip for bits, clip in self.clips.items()}
        if self.schedule.total:
            found |= {f"{layer}.b": self.b, f"{layer}.a": self.a}
        found |= {f"{layer}.static.{bits}": grid for bits, grid in self.static.items()}
        return {name: tensor.contiguous() for name, tensor in found.items()}

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors("").values())
