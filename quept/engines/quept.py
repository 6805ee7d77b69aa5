"""QuEPT (arXiv 2602.12609): the grid of rtn, moved by what calibration learned of each layer. An artifact
stores, by layer:

    b      (out, R)         float16    adapter, R = ranks of the schedule
    a      (R, in)          float16
    clip   (2, out, groups) uint8      for each width that clips: factors of the lower and the upper end,
                                       factor = (code + 1) / 256
    second (out, in / 8)    uint8      for each width whose rounding was chosen: a bit for each weight, the
                                       first the lowest, set where it goes to the second nearest point
    static (2, sites)       float32    for each width of its input: scale and zero-point of the input and,
                                       of a layer that gives query, key and value, of these three

A width that was not calibrated, or for which round-to-nearest proved better in this layer, is not in
`widths`: adapter and clips have no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from quept.checked import Whole, Width, checked, form
from quept.numerics.adapters import RankSchedule, adapter
from quept.numerics.grid import Quantized, Rounding, group_size

from .base import Listing
from .rtn import Rtn

CLIP_STEPS = 256
_ADAPTERS = form(groups=list[list[Width]], steps=list[Whole])


@dataclass(frozen=True)
class Quept(Rtn):
    """A layer without an entry in `learned` is rounded to nearest at every width."""

    learned: Mapping[str, LayerParameters] = field(default_factory=dict)
    title = "calibrated"
    recipe_part = "adapters"

    @classmethod
    def read(cls, listing: Listing, tensors: Mapping[str, Tensor]) -> Quept:
        adapters = checked(listing.recipe[cls.recipe_part], _ADAPTERS, "its recipe", ValueError)
        schedule = RankSchedule(tuple(map(tuple, adapters["groups"])), tuple(adapters["steps"]))
        parts: dict[str, dict[str, Tensor]] = {layer: {} for layer in listing.layers}
        for key, tensor in tensors.items():
            layer, part = _place(key)
            if layer not in parts:
                raise ValueError(f"unknown layer {layer}")
            parts[layer][part] = tensor
        widths = {layer: tuple(listing.widths.get(layer, ())) for layer in parts}
        return cls(
            listing.group,
            {layer: _parameters(schedule, found, widths[layer]) for layer, found in parts.items()},
        )

    def misfit(self, layer: str, rows: int, columns: int) -> str:
        learned, groups = self.learned[layer], -(-columns // group_size(columns, self.group))
        rank = learned.schedule.total
        if learned.widths and rank and (learned.b.shape, learned.a.shape) != ((rows, rank), (rank, columns)):
            return f"its adapter is not ({rows}, {rank}) and ({rank}, {columns})"
        if any(clip.shape[1:] != (rows, groups) for clip in learned.clips.values()):
            return f"its clip factors are not ({rows}, {groups}): groups of {self.group!r} are others"
        if any(marks.shape != (rows, -(-columns // 8)) for marks in learned.second.values()):
            return f"its choices of rounding are not ({rows}, {-(-columns // 8)})"
        return ""

    def tensors(self) -> dict[str, Tensor]:
        return {k: t for name, layer in self.learned.items() for k, t in layer.tensors(name).items()}

    def rounding(self, layer: str, weight: Tensor, setting: int) -> Rounding:
        if layer not in self.learned:
            return super().rounding(layer, weight, setting)
        return self.learned[layer].rounding(weight, setting, group_size(weight.shape[1], self.group))

    def static(self, layer: str) -> Mapping[int, Tensor]:
        return self.learned[layer].static if layer in self.learned else {}


@dataclass(frozen=True)
class LayerParameters:
    """See the module docstring. `clips` is `{bits: (2, out, groups)}`, `static` `{bits: (2, sites)}`: empty
    where activations are rounded by the range that each token has; `second` `{bits: (out, in / 8)}`."""

    schedule: RankSchedule
    b: Tensor
    a: Tensor
    clips: Mapping[int, Tensor]
    widths: tuple[int, ...]
    static: Mapping[int, Tensor] = field(default_factory=dict)
    second: Mapping[int, Tensor] = field(default_factory=dict)

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
        codes = {bits: _codes(f) for bits, f in factors.items()}
        grids = {bits: grid.float().cpu() for bits, grid in (static or {}).items()}
        return cls(schedule, b.half().cpu(), a.half().cpu(), codes, widths, grids)

    def without(self, bits: int, grid: Tensor | None = None) -> LayerParameters:
        """The same layer with this width rounded to nearest, and activations of it on `grid` or, where there
        is none, by the range of each token."""
        clips, static, second = (
            {b: t for b, t in of.items() if b != bits} for of in (self.clips, self.static, self.second)
        )
        static |= {} if grid is None else {bits: grid}
        widths = tuple(b for b in self.widths if b != bits)
        return replace(self, clips=clips, widths=widths, static=static, second=second)

    def choosing(self, bits: int, second: Tensor) -> LayerParameters:
        """The same layer where these weights, (out, in) bool, go to the second nearest point at a width."""
        packed = torch.from_numpy(np.packbits(second.cpu().numpy(), axis=-1, bitorder="little"))
        return replace(self, second={**self.second, bits: packed})

    def clipping(self, bits: int, factors: Tensor) -> LayerParameters:
        """The same layer with these clip factors, (2, out, groups) in (0, 1], at a width without ranks."""
        clips = {**self.clips, bits: _codes(factors)}
        return replace(self, clips=clips, widths=tuple(sorted({*self.widths, bits})))

    def quantize(self, weight: Tensor, bits: int, group: int) -> tuple[Quantized, Tensor]:
        """The layer at 2..8 bits: packed, and as values (out, in) float32 on the grid."""
        return self.rounding(weight, bits, group).quantized()

    def rounding(self, weight: Tensor, bits: int, group: int) -> Rounding:
        """The layer at 2..8 bits, to be rounded."""
        device, added, ends, second = weight.device, None, (1.0, 1.0), None
        if bits in self.widths and self.schedule.ranks(bits):
            b, a = (t.to(device, torch.float32) for t in (self.b, self.a))
            added = adapter(b, a, self.schedule, bits)
        if bits in self.widths and bits in self.clips:
            ends = self.clips[bits].to(device).float().add_(1).div_(CLIP_STEPS)[..., None]
        if bits in self.second:
            marks = self.second[bits].numpy()
            bools = np.unpackbits(marks, axis=-1, count=weight.shape[1], bitorder="little")
            second = torch.from_numpy(bools).to(device)
        return Rounding(weight, bits, group, added, *ends, second)

    def tensors(self, layer: str) -> dict[str, Tensor]:
        """What is written, by name."""
        found = {f"{layer}.clip.{bits}": clip for bits, clip in self.clips.items()}
        if self.schedule.total:
            found |= {f"{layer}.b": self.b, f"{layer}.a": self.a}
        found |= {f"{layer}.static.{bits}": grid for bits, grid in self.static.items()}
        found |= {f"{layer}.second.{bits}": marks for bits, marks in self.second.items()}
        return {name: tensor.contiguous() for name, tensor in found.items()}

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors("").values())


def _codes(factors: Tensor) -> Tensor:
    return factors.mul(CLIP_STEPS).round_().sub_(1).clamp_(0, CLIP_STEPS - 1).to(torch.uint8).cpu()


def _place(key: str) -> tuple[str, str]:
    """(layer, part) of a tensor's name: "b", "a", "clip.4", "static.4", "second.4"."""
    layer, _, part = key.rpartition(".")
    if part.isdigit():
        layer, _, kind = layer.rpartition(".")
        part = f"{kind}.{part}"
    return layer, part


def _parameters(
    schedule: RankSchedule, parts: Mapping[str, Tensor], widths: tuple[int, ...]
) -> LayerParameters:
    empty = torch.zeros(0, 0, dtype=torch.float16)
    b, a = parts.get("b", empty), parts.get("a", empty)
    kinds = ("clip", "static", "second")
    if odd := [part for part in parts if part.partition(".")[0] not in ("b", "a", *kinds)]:
        raise ValueError(f"unknown tensor {odd[0]}")
    clips, static, second = (
        {int(key.partition(".")[2]): t for key, t in parts.items() if key.startswith(f"{kind}.")}
        for kind in kinds
    )
    if b.ndim != 2 or a.ndim != 2 or not (b.is_floating_point() and a.is_floating_point()):
        raise ValueError("adapters of another form")
    if schedule.total and widths and not b.shape[1] == a.shape[0] == schedule.total:
        raise ValueError(f"adapters of rank {b.shape[1]} and {a.shape[0]}, {schedule.total} expected")
    if any(t.dtype != torch.uint8 or t.ndim != 3 or len(t) != 2 for t in clips.values()):
        raise ValueError("clip factors of another form")
    if not all(map(_is_grid, static.values())):
        raise ValueError("static grids of another form")
    if any(t.dtype != torch.uint8 or t.ndim != 2 for t in second.values()):
        raise ValueError("choices of rounding of another form")
    return LayerParameters(schedule, b, a, clips, widths, static, second)


def _is_grid(t: Tensor) -> bool:
    """Whether these are scales and zero-points: (2, sites)."""
    if t.dtype != torch.float32 or t.ndim != 2 or len(t) != 2 or t.shape[1] not in (1, 4):
        return False
    scale, zero = t
    return bool(t.isfinite().all() and (scale > 0).all() and (zero >= 0).all() and (zero < 256).all())
