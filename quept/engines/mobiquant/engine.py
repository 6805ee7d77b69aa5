"""What is stored of a layer, what an artifact keeps of it, and the settings.

A layer is its nested codes, made from the base weight when it is wanted, and what calibration learned of how
they are read. An artifact stores, by layer:

    scales.B   (out, groups)  float16   for each width B that has its own grid, see quept.numerics.nested
    zeros.B    (out, groups)  uint8
    a.B, b.B   (rank, in), (rank, out)  uint8 codes of 8 bits and, as a_scales.B and b_scales.B, their float16
               scales: the low-rank correction that is read beside the codes at this width
    router.*   of the first of the layers that share an input, see `router`

and for all layers together

    routes      (layers,)             int32    the layer whose router each layer has, by its place in the list
    averages    (n,)                  float32  bits a token gets on average
    thresholds  (n, routers, 3)       float32  what it takes: in the order in which layers have routers
    bits        (n, routers)          float32  what the layers of each router get then
    kl          (n,)                  float32  divergence from full precision there, on held-out text

Settings are the widths 2 to 8, the same bits for every token (3, 5 and 7 are the leading bits too), and
"routed:3.5", an average over tokens and layers; "routed:3.5/4" is that with at most 4 bits in this layer.
Kept is always the whole store; what a token *reads* is `bytes_read`. The size of a width is what that width
alone would take. A file of codes holds its values, rounded once more, to the plain grid of the width.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import NotRequired

import torch
from torch import Tensor, dtype, nn
from torch.nn.functional import linear

from quept.checked import Number, Whole, checked, form
from quept.kernels import PackedWeight, missing
from quept.kernels.nested import Choices, Correction, Depth
from quept.numerics.grid import Quantized, dequantize, group_size, quantize, quantized_bytes
from quept.numerics.nested import BITS, Grid, Nested, nested, nested_bytes, read

from .. import Setting
from ..base import Engine, EngineError, Listing, Stored
from .linear import NestedLinear
from .planes import Planes
from .router import FURTHER, Router

ROUTED = "routed:"
EXPORTED = 4  # bits from which the plain grid of a width holds what its correction adds
RANK_GROUP = 64  # columns of a correction that share a scale
_ROUTING = form(
    router=str,
    hidden=Whole,
    sequences=Whole,
    epochs=Whole,
    rate=Number,
    steps=NotRequired[Whole],  # since widths go on learning behind the routers
    averages=NotRequired[list[Number]],
    settled=NotRequired[dict[str, Number]],
)
_PARTS = {
    "scales": torch.float16,
    "zeros": torch.uint8,
    "a": torch.uint8,
    "b": torch.uint8,
    "a_scales": torch.float16,
    "b_scales": torch.float16,
}


@dataclass(frozen=True, eq=False)
class Branch:
    """A low-rank correction: x (..., in) -> x A^T B (..., out). a (rank, in), b (rank, out): 8-bit codes."""

    a: Quantized
    b: Quantized

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> Branch:
        """From floats a (rank, in), b (out, rank)."""
        (a, _), (b, _) = (quantize(t, 8, min(RANK_GROUP, t.shape[1])) for t in (a, b.T))
        return cls(a, b)

    @property
    def values(self) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank), float32: made each time, since a token reads the codes."""
        return dequantize(self.a), dequantize(self.b).T.contiguous()

    @property
    def rank(self) -> int:
        return len(self.a.codes)

    def __call__(self, x: Tensor) -> Tensor:
        a, b = (t.to(x.device, x.dtype) for t in self.values)
        return linear(linear(x, a), b)

    def product(self) -> Tensor:
        """What it adds to the weight (out, in), float32."""
        a, b = self.values
        return b @ a

    @property
    def correction(self) -> Correction:
        """The same as the kernels read it."""
        return Correction(PackedWeight.pack(self.a), self.b.codes, self.b.scales, self.b.group)

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


@dataclass(frozen=True)
class LayerParameters:
    """What was learned of a layer: `{bits: ...}` its grids and corrections."""

    grids: Mapping[int, Grid] = field(default_factory=dict)
    branches: Mapping[int, Branch] = field(default_factory=dict)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(sorted(self.grids))

    def without(self, bits: int) -> LayerParameters:
        """The same with this width read as the codes were made."""
        grids, branches = (
            {b: part for b, part in parts.items() if b != bits} for parts in (self.grids, self.branches)
        )
        return LayerParameters(grids, branches)

    def tensors(self, layer: str) -> dict[str, Tensor]:
        found = {f"{layer}.scales.{bits}": grid.scales for bits, grid in self.grids.items()}
        found |= {f"{layer}.zeros.{bits}": grid.zeros for bits, grid in self.grids.items()}
        for bits, branch in self.branches.items():
            for name, part in (("a", branch.a), ("b", branch.b)):
                found |= {
                    f"{layer}.{name}.{bits}": part.codes,
                    f"{layer}.{name}_scales.{bits}": part.scales,
                }
        return {name: t.contiguous() for name, t in found.items()}


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """One layer, by name, at all settings: its codes, how they are read, its router where there is one."""

    layer: str
    codes: Nested | Planes
    learned: LayerParameters
    router: Router | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape

    @property
    def branches(self) -> Mapping[int, Branch]:
        return self.learned.branches

    def on_grid(self, bits: int) -> Tensor:
        """The leading bits as values (out, in) float32, without a correction."""
        if isinstance(self.codes, Planes) and bits in self.codes.read:
            return self.codes.read[bits].unpack()
        grid = self.learned.grids.get(bits, self.codes.grid)
        return read(self.codes.leading(bits), bits, grid, self.codes.group)

    def product(self, x: Tensor, bits: int, bias: Tensor | None) -> Tensor:
        """x (..., in) -> (..., out) for tokens of this many bits."""
        packed = self.codes.read.get(bits) if isinstance(self.codes, Planes) else None
        if packed is None or (torch.is_grad_enabled() and x.requires_grad):
            y = linear(x, self.on_grid(bits).to(x.dtype), bias)
        elif self.codes.few(x):
            y = packed.matmul(x, bias).to(x.dtype)
        else:
            half = x.dtype == torch.bfloat16
            values = packed.unpack(torch.empty(packed.shape, dtype=x.dtype if half else torch.float32))
            y = linear(x, values.to(x.dtype), bias)
        return y + self.branches[bits](x) if bits in self.branches else y

    def values(self, bits: int) -> Tensor:
        """What a token of this many bits is multiplied by (out, in), float32."""
        values = self.on_grid(bits)
        return values + self.branches[bits].product() if bits in self.branches else values

    @cached_property
    def depths(self) -> tuple[Depth, ...]:
        """Its depths as one call reads a token (see quept.kernels.decoder), by slices; () without kernels."""
        if not isinstance(self.codes, Planes):
            return ()
        beside = {bits: branch.correction for bits, branch in self.branches.items()}
        return tuple(Depth(weight, beside.get(bits)) for bits, weight in self.codes.read.items())

    @cached_property
    def choices(self) -> Choices:
        """Those depths and its router."""
        return Choices(self.router.table(self.shape[1]), self.depths)

    @property
    def nbytes(self) -> int:
        parts = (*self.learned.grids.values(), *self.branches.values(), *filter(None, (self.router,)))
        return self.codes.nbytes + sum(part.nbytes for part in parts)


@dataclass(frozen=True)
class Routes:
    """Routers, and what it takes to give tokens an average. leaders: `{layer: the layer whose router it
    has}`, one for all that read the same input. routers: `{leader: router}`, in the order in which thresholds
    (averages, routers, 3) speak of them. averages (n,) ascending."""

    leaders: Mapping[str, str]
    routers: Mapping[str, Router]
    averages: Tensor
    thresholds: Tensor
    bits: Tensor
    kl: Tensor

    @classmethod
    def read(cls, layers: tuple[str, ...], kind: str, tensors: dict[str, Tensor]) -> Routes:
        """From what an artifact stores of it, which is taken out of `tensors`."""
        routes, averages, thresholds, bits, kl = (
            tensors.pop(name) for name in ("routes", "averages", "thresholds", "bits", "kl")
        )
        places = routes.tolist()
        if routes.dtype != torch.int32 or len(places) != len(layers) or not _leads(places):
            raise ValueError("routes that lead nowhere")
        leaders = dict(zip(layers, (layers[place] for place in places), strict=True))
        routers = {}
        for name in dict.fromkeys(leaders.values()):
            parts = [key for key in tensors if key.startswith(f"{name}.router.")]
            routers[name] = Router(kind, {key.rpartition(".")[2]: tensors.pop(key) for key in parts})
        shape = (len(averages), len(routers), FURTHER)
        sound = averages.ndim == 1 and len(averages) and averages.isfinite().all()
        if not sound or thresholds.shape != shape or bool(thresholds.isnan().any()):
            raise ValueError("thresholds of another form")
        curves = ((kl, averages.shape), (bits, shape[:2]))
        if any(curve.shape != shape or not curve.isfinite().all() for curve, shape in curves):
            raise ValueError("curves of another form")
        return cls(leaders, routers, averages, thresholds, bits, kl)

    def at(self, layer: str, average: float) -> Tensor:
        """Thresholds (3,) of a layer's router for an average."""
        rows = self._rows_at.get(average)
        if rows is None:
            row = tuple(self.thresholds[self._nearest(average)])
            rows = self._rows_at[average] = {name: row[place] for name, place in self._places.items()}
        return rows[layer]

    def _nearest(self, average: float) -> int:
        above = min(bisect_left(self._listed, average), len(self._listed) - 1)
        below = max(above - 1, 0)
        return below if average - self._listed[below] < self._listed[above] - average else above

    @cached_property
    def _listed(self) -> list[float]:
        return self.averages.tolist()

    @cached_property
    def _places(self) -> dict[str, int]:
        """Of each layer's router in the thresholds."""
        of_router = {name: i for i, name in enumerate(self.routers)}
        return {layer: of_router[leader] for layer, leader in self.leaders.items()}

    @cached_property
    def _rows_at(self) -> dict[float, dict[str, Tensor]]:
        """Thresholds by layers, for the averages that were asked for."""
        return {}

    def of(self, layer: str) -> Router:
        return self.routers[self.leaders[layer]]

    def tensors(self) -> dict[str, Tensor]:
        place = {name: i for i, name in enumerate(self.leaders)}
        found = {
            "routes": torch.tensor([place[leader] for leader in self.leaders.values()], dtype=torch.int32),
            "averages": self.averages,
            "thresholds": self.thresholds,
            "bits": self.bits,
            "kl": self.kl,
        }
        for name, router in self.routers.items():
            found |= {f"{name}.router.{key}": t for key, t in router.tensors.items()}
        return {name: t.contiguous() for name, t in found.items()}


@dataclass(frozen=True)
class MoBiQuant(Engine):
    """Without anything learned: nested codes read as they were made, every token at the same width."""

    group: int | str
    learned: Mapping[str, LayerParameters] = field(default_factory=dict)
    routes: Routes | None = None
    title = "nested codes"
    recipe_part = "routing"
    runs_itself = True

    @classmethod
    def read(cls, listing: Listing, tensors: Mapping[str, Tensor]) -> MoBiQuant:
        if not tensors:
            return cls(listing.group)
        left, layers = dict(tensors), tuple(listing.layers)
        kind = checked(listing.recipe[cls.recipe_part], _ROUTING, "its recipe", ValueError)["router"]
        routes = Routes.read(layers, kind, left) if "routes" in left else None
        parts: dict[str, dict[str, Tensor]] = {layer: {} for layer in layers}
        for key, tensor in left.items():
            layer, _, part = key.removesuffix(f".{key.rpartition('.')[2]}").rpartition(".")
            if layer not in parts:
                raise ValueError(f"unknown tensor {key}")
            parts[layer][f"{part}.{key.rpartition('.')[2]}"] = tensor
        return cls(listing.group, {name: _parameters(found) for name, found in parts.items()}, routes)

    def misfit(self, layer: str, rows: int, columns: int) -> str:
        learned = self.learned.get(layer, LayerParameters())
        groups = -(-columns // group_size(columns, self.group))
        for bits, grid in learned.grids.items():
            if not grid.scales.shape == grid.zeros.shape == (rows, groups):
                return f"its scales at {bits} bits are not ({rows}, {groups})"
        for bits, branch in learned.branches.items():
            if (branch.a.columns, branch.b.columns, len(branch.b.codes)) != (columns, rows, branch.rank):
                return f"its correction at {bits} bits is none of ({rows}, {columns})"
        return self.routes.of(layer).misfit(columns) if self.routes else ""

    def tensors(self) -> dict[str, Tensor]:
        found = {k: t for name, layer in self.learned.items() for k, t in layer.tensors(name).items()}
        return found | (self.routes.tensors() if self.routes else {})

    def quantize(self, layer: str, weight: Tensor, setting: Setting) -> tuple[StoredLayer, None]:
        codes = nested(weight, group_size(weight.shape[1], self.group))
        learned = self.learned.get(layer, LayerParameters())
        if weight.device.type == "cpu" and not missing():
            codes = Planes.of(codes, learned.grids)
        return StoredLayer(layer, codes, learned, self.routes.of(layer) if self.routes else None), None

    def values(self, stored: StoredLayer, setting: Setting) -> Tensor:
        return stored.values(parsed(setting)[1])

    def storage(self, setting: Setting) -> Setting:
        return "nested"

    def deployed(self, stored: StoredLayer, setting: Setting) -> Stored:
        """The values at a width, corrected, rounded to the plain grid of that width, which files hold."""
        average, bits = parsed(setting)
        return stored if average else quantize(stored.values(bits), bits, stored.codes.group)[0]

    def unheld(self, setting: Setting) -> str:
        average, bits = parsed(setting)
        if average is not None or not self._ranks.get(bits, 0) or bits >= EXPORTED:
            return ""
        return (
            f"{bits} bits of nested codes are read with a correction that no file of codes holds: take "
            f"{EXPORTED} bits or more, or a folder in 16 bits (--to hf)"
        )

    def module(self, stored: StoredLayer, setting: Setting, bias: Tensor | None, dtype: dtype) -> nn.Module:
        average, bits = parsed(setting)
        if average is None:
            return NestedLinear.of(stored, bits, None, bias, dtype)
        if self.routes is None:
            raise EngineError(
                f"nothing was calibrated here that could route tokens: take a width, 2 to {BITS}, or "
                "calibrate with a recipe that has routers, like mobiquant"
            )
        return NestedLinear.of(stored, bits, self.routes.at(stored.layer, average), bias, dtype)

    def nbytes(self, rows: int, columns: int, setting: Setting) -> int:
        average, bits = parsed(setting)
        return self.bytes_read(rows, columns, bits) if average is None else self.kept(rows, columns)

    def bytes_read(self, rows: int, columns: int, bits: int) -> int:
        """Bytes that a token of this many bits reads of a layer, but for its router."""
        codes = nested_bytes(rows, columns, bits, group_size(columns, self.group))
        return codes + _branch_bytes(rows, columns, self._ranks.get(bits, 0))

    def kept(self, rows: int, columns: int) -> int:
        """Bytes of a layer as it is kept: all slices, all grids, its router."""
        groups = -(-columns // group_size(columns, self.group))
        learned = sum(3 * rows * groups + _branch_bytes(rows, columns, r) for r in self._ranks.values())
        router = next(iter(self.routes.routers.values())).bytes_for(columns) if self.routes else 0
        return self.bytes_read(rows, columns, BITS) + learned + router

    @cached_property
    def _ranks(self) -> dict[int, int]:
        """The rank of the correction at each width that learned, the same in all layers."""
        one = next(iter(self.learned.values()), LayerParameters())
        return {bits: one.branches[bits].rank if bits in one.branches else 0 for bits in one.grids}


@cache
def parsed(setting: Setting) -> tuple[float | None, int]:
    """Returns the average of a setting, None for a width, and the most bits that a token gets."""
    if not isinstance(setting, str):
        return None, setting
    average, _, cap = setting.removeprefix(ROUTED).partition("/")
    return float(average), int(cap or BITS)


def _leads(places: list[int]) -> bool:
    """Whether every layer's router is that of a layer which has its own."""
    return all(0 <= place < len(places) and places[place] == place for place in places)


def _branch_bytes(rows: int, columns: int, rank: int) -> int:
    return sum(quantized_bytes(rank, n, 8, min(RANK_GROUP, n)) for n in (rows, columns)) if rank else 0


def _parameters(parts: Mapping[str, Tensor]) -> LayerParameters:
    found: dict[str, dict[int, Tensor]] = {name: {} for name in _PARTS}
    for key, tensor in parts.items():
        name, _, bits = key.partition(".")
        if name not in _PARTS or not bits.isdigit():
            raise ValueError(f"unknown tensor {key}")
        if tensor.dtype != _PARTS[name] or tensor.ndim != 2 or not tensor.float().isfinite().all():
            raise ValueError(f"{key} of another form")
        found[name][int(bits)] = tensor
    grids = {bits: Grid(scales, found["zeros"][bits]) for bits, scales in found["scales"].items()}
    branches = {
        bits: Branch(*(_codes(found[n][bits], found[f"{n}_scales"][bits]) for n in ("a", "b")))
        for bits in found["a"]
    }
    return LayerParameters(grids, branches)


def _codes(codes: Tensor, scales: Tensor) -> Quantized:
    columns = codes.shape[1]
    group = min(RANK_GROUP, columns)
    if scales.shape != (len(codes), -(-columns // group)):
        raise ValueError("scales of a correction of another form")
    return Quantized(8, group, columns, codes, scales, None)
