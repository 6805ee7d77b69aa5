"""Nested codes (quept.numerics.nested) as the kernels read them: slices at a depth, corrections, routers.

A depth is a PackedWeight whose `bits` are NESTED + n: it reads the first n of four slices of 2 bits, which
lie one behind the other and are shared by all depths, on scales and zero-points of its own (c/weight.h).
`Depth` adds the low-rank correction that is read beside it, `RouterTable` scores a layer's input, and
`Routing` is a layer whose tokens choose among depths (c/decode.h).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p, pointer
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from quept.numerics.grid import Quantized
from quept.numerics.nested import BITS, SLICE

from .library import Weight, loaded
from .packed import DENSE, TILE, PackedWeight

NESTED, FLOAT = 8, 32  # see c/weight.h
FURTHER = BITS // SLICE - 1


def pack_slices(slices: Sequence[Tensor], columns: int, group: int) -> PackedWeight:
    """Slices (out, packed row), the highest bits first -> the weight that reads all of them, its scales 1 and
    its zero-points 0."""
    rows, groups = len(slices[0]), -(-columns // group)
    ones = torch.ones(rows, groups, dtype=torch.float16)
    packed = [PackedWeight.pack(Quantized(SLICE, group, columns, part, ones, None)) for part in slices]
    codes = torch.stack([part.codes for part in packed])
    zeros = torch.zeros_like(packed[0].scales, dtype=torch.uint8)
    return PackedWeight((rows, columns), NESTED + len(slices), group, codes, packed[0].scales, zeros)


def at_depth(weight: PackedWeight, slices: int, scales: Tensor, zeros: Tensor) -> PackedWeight:
    """The first slices of a nested weight on this grid, scales (out, groups) float16 and zeros (out, groups)
    uint8, over the same codes."""
    grid = _tiled(scales), _tiled(zeros)
    return PackedWeight(weight.shape, NESTED + slices, weight.group, weight.codes, *grid)


def dense_rows(values: Tensor) -> PackedWeight:
    """Values (rows, columns) that are multiplied as they are, float32 where they have no type of 16 bits."""
    values = (values if values.dtype in DENSE else values.float()).contiguous()
    shape, bits = tuple(values.shape), DENSE.get(values.dtype, FLOAT)
    return PackedWeight(shape, bits, shape[1], values, None, None)


def _tiled(numbers: Tensor) -> Tensor:
    """(out, groups) -> (tiles, groups, TILE), as the kernels read scales and zero-points."""
    rows = pad(numbers, (0, 0, 0, -len(numbers) % TILE))
    return rows.unflatten(0, (-1, TILE)).transpose(1, 2).contiguous()


class _Correction(ctypes.Structure):
    _fields_ = [("a", POINTER(Weight)), ("codes", c_void_p), ("scales", c_void_p), ("group", c_int64)]


class DepthTable(ctypes.Structure):
    """Depth of c/decode.h."""

    _fields_ = [("weight", POINTER(Weight)), ("correction", POINTER(_Correction))]


class _Router(ctypes.Structure):
    _fields_ = [
        ("first", POINTER(Weight)),
        *((name, c_void_p) for name in ("b1", "w2", "offset")),
        ("columns", c_int64),
    ]


class RoutingTable(ctypes.Structure):
    """Routing of c/decode.h."""

    _fields_ = [
        ("router", POINTER(_Router)),
        ("depths", DepthTable * (FURTHER + 1)),
        ("thresholds", c_float * FURTHER),
        ("most", c_int32),
    ]


@dataclass(frozen=True, eq=False)
class Correction:
    """x -> b (a x). a (rank, in) packed; b, codes (rank, out) uint8 of 8 bits about 128 with scales
    (rank, blocks) float16, one for `group` outputs."""

    a: PackedWeight
    codes: Tensor
    scales: Tensor
    group: int

    def __post_init__(self):
        rank, rows = self.codes.shape
        sound = self.codes.dtype == torch.uint8 and self.scales.dtype == torch.float16
        whole = self.codes.is_contiguous() and self.scales.is_contiguous() and self.group > 0
        fits = self.a.shape[0] == rank and self.scales.shape == (rank, -(-rows // self.group))
        if not (sound and whole and fits):
            raise ValueError("the parts of a correction do not fit each other")

    @cached_property
    def structure(self) -> _Correction:
        places = self.codes.data_ptr(), self.scales.data_ptr()
        return _Correction(pointer(self.a.structure), *places, self.group)


@dataclass(frozen=True, eq=False)
class Depth:
    """A weight of any kind, and what is read beside it."""

    weight: PackedWeight
    correction: Correction | None = None

    def __post_init__(self):
        beside = self.correction
        if beside and (beside.codes.shape[1], beside.a.shape[1]) != self.weight.shape:
            raise ValueError(f"a correction of another shape than its weight's, {self.weight.shape}")

    @cached_property
    def structure(self) -> DepthTable:
        correction = pointer(self.correction.structure) if self.correction else None
        return DepthTable(pointer(self.weight.structure), correction)


@dataclass(frozen=True, eq=False)
class RouterTable:
    """A router of quept.engines.mobiquant.router for `columns` inputs. first: W1 (hidden, columns + 1) or
    P (rows, columns), dense; None: the norm alone. b1 (hidden), w2 (3, hidden), of an mlp, and offset (3) are
    contiguous float32."""

    columns: int
    first: PackedWeight | None
    offset: Tensor
    b1: Tensor | None = None
    w2: Tensor | None = None

    def __post_init__(self):
        rows, inputs = self.first.shape if self.first else (0, self.columns)
        expected = [(self.offset, (FURTHER,))]
        if self.w2 is not None:
            expected += [(self.b1, (rows,)), (self.w2, (FURTHER, rows))]
            inputs -= 1
        whole = all(t.dtype == torch.float32 and t.is_contiguous() and t.shape == s for t, s in expected)
        if not whole or inputs != self.columns:
            raise ValueError(f"the parts of a router of {self.columns} inputs do not fit each other")

    @cached_property
    def structure(self) -> _Router:
        first = pointer(self.first.structure) if self.first else None
        others = (None if t is None else t.data_ptr() for t in (self.b1, self.w2, self.offset))
        return _Router(first, *others, self.columns)

    def scores(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., 3) float32, each token by itself: the same whatever is beside it."""
        library, inputs = loaded(), x.detach().float().contiguous()
        scores = torch.empty(*x.shape[:-1], FURTHER, dtype=torch.float32)
        n = inputs.numel() // self.columns
        router, places = ctypes.byref(self.structure), (inputs.data_ptr(), n, scores.data_ptr())
        if n and library.c.quept_scores(library.pool(), library.products, router, *places):
            raise MemoryError("no memory for the scores of a router")
        return scores


@dataclass(frozen=True, eq=False)
class Choices:
    """What tokens of a layer choose from: depths by slices on, and the router that scores them."""

    router: RouterTable
    depths: Sequence[Depth]

    def __post_init__(self):
        shapes = {depth.weight.shape for depth in self.depths}
        if len(shapes) != 1 or {columns for _, columns in shapes} != {self.router.columns}:
            raise ValueError("the depths and the router of a layer do not fit each other")

    @cached_property
    def structure(self) -> RoutingTable:
        """With all depths and no thresholds: what `Routing` copies."""
        depths = (DepthTable * (FURTHER + 1))(*(depth.structure for depth in self.depths))
        return RoutingTable(pointer(self.router.structure), depths, (c_float * FURTHER)(), len(self.depths))


@dataclass(frozen=True, eq=False)
class Routing:
    """A layer at thresholds (3), of whose depths a token gets at most the first `most`."""

    choices: Choices
    thresholds: Sequence[float]
    most: int

    @property
    def depths(self) -> Sequence[Depth]:
        return self.choices.depths[: self.most]

    @cached_property
    def structure(self) -> RoutingTable:
        table = RoutingTable.from_buffer_copy(self.choices.structure)
        table.thresholds[:], table.most = self.thresholds, self.most
        return table
