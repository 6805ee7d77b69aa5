"""Decoder: one token through a Llama-like model, from its id to the logits, in one call of c/decode.c.

It is made of weights, packed or dense, norms and biases, and holds tables of pointers to them: the weights
are shared with whoever else reads them, so two plans are two small tables over one store. `keep(buffers)`
makes the table of a conversation's keys and values; `step` reads them, adds those of the token, and returns
logits. Layers of nested codes may choose how many slices a token reads (see nested); a step tells how many
it read. The interpreter is free while a step runs. Shapes and types are checked here; C trusts them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p, pointer
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from .library import Pool, Weight, loaded
from .nested import Depth, DepthTable, Routing, RoutingTable
from .packed import PackedWeight
from .rows import PackedRows

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
UNTOLD = -1  # the place of a layer whose slices are not told
DENSE = {torch.float32: 32, torch.bfloat16: 16}  # what stands for bits in c/weight.h


@dataclass(frozen=True)
class Linear:
    """x (in) -> (out): a packed weight or a contiguous one in float32 or bfloat16, a depth of nested codes or
    their routing or, of a head, stretches of rows; and a bias or None."""

    weight: PackedWeight | PackedRows | Tensor | Depth | Routing
    bias: Tensor | None = None

    @cached_property
    def depths(self) -> tuple[Depth, ...]:
        """What tokens can get: nested codes at one depth or several, () of anything else."""
        if isinstance(self.weight, Routing):
            return tuple(self.weight.depths)
        return (self.weight,) if isinstance(self.weight, Depth) else ()

    @cached_property
    def shape(self) -> tuple[int, ...]:
        weight = self.depths[0].weight if self.depths else self.weight
        return tuple(weight.shape)


@dataclass(frozen=True)
class Layer:
    """One decoder block; q_norm and k_norm, of every head, where the family has them."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear
    attention_norm: Tensor
    mlp_norm: Tensor
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


@dataclass(frozen=True)
class Rotary:
    """frequencies (head_dim / 2,) in radians a token; scale: of cosines and sines."""

    frequencies: Tensor
    scale: float


@dataclass(frozen=True)
class Kept:
    """Keys or values of one layer. codes (..., kv_heads, room, head_dim) float32 or bfloat16; or, at `bits`,
    packed as numerics.packing does, with scales (.., groups) float16 and zeros the same in uint8. clip: of
    the range, when a token is rounded."""

    codes: Tensor
    scales: Tensor | None = None
    zeros: Tensor | None = None
    bits: int | None = None
    clip: float = 1.0


class _Linear(ctypes.Structure):
    _fields_ = [
        ("depth", DepthTable),
        ("bias", c_void_p),
        ("routing", POINTER(RoutingTable)),
        ("place", c_int64),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Linear) for name in LINEARS),
        *((name, c_void_p) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        ("layers", POINTER(_Layer)),
        ("layers_count", c_int64),
        ("embedding", POINTER(POINTER(Weight))),
        ("head", POINTER(_Linear)),
        ("embedding_parts", c_int64),
        ("head_parts", c_int64),
        ("norm", c_void_p),
        ("frequencies", c_void_p),
        *((name, c_int64) for name in ("hidden", "inner", "heads", "kv_heads", "head_dim")),
        *((name, c_int64) for name in ("input_bytes", "own_floats")),
        ("eps", c_float),
        ("turn_scale", c_float),
        ("fast", c_int32),
    ]


class _Kept(ctypes.Structure):
    _fields_ = [
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("bits", c_int32),
        ("group", c_int32),
        ("clip", c_float),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [("keys", _Kept), ("values", _Kept), ("room", c_int64)]


@dataclass(frozen=True)
class CacheTable:
    """The caches of all layers as C reads them; `room` tokens fit. It keeps the buffers alive."""

    pointers: ctypes.Array
    room: int
    buffers: tuple[tuple[Kept, Kept], ...]


class Decoder:
    """See the module docstring. heads: of queries; the rest follows from shapes. fast: products round their
    inputs to 8 bits (see packed). nested (layers, 7): the weights of each layer of nested codes, 0 of others.
    ValueError where shapes do not fit."""

    def __init__(
        self,
        layers: Sequence[Layer],
        embedding: PackedWeight | PackedRows | Tensor,
        head: Linear,
        norm: Tensor,
        rotary: Rotary,
        heads: int,
        eps: float,
        fast: bool = False,
    ):
        self._kept_alive: list = []
        self.vocabulary, self.hidden = embedding.shape
        self.rotary, self.fast, self._library = rotary, fast, loaded()
        self.head_dim = 2 * rotary.frequencies.numel()
        self.kv_heads, self.inner = layers[0].k.shape[0] // self.head_dim, layers[0].up.shape[0]
        for layer in layers:
            self._check(layer, heads)
        if head.shape != (self.vocabulary, self.hidden) or norm.shape != (self.hidden,):
            raise ValueError("the head and the last norm do not fit the embedding")
        table = (_Layer * len(layers))(*(self._layer(layer, i) for i, layer in enumerate(layers)))
        rows = [self._weight(part) for part in _stretches(embedding)]
        last = [self._linear(part) for part in _head_parts(head)]
        self.nested = torch.tensor([_nested_weights(layer) for layer in layers])
        self._model = _Model(
            table,
            len(layers),
            (POINTER(Weight) * len(rows))(*rows),
            (_Linear * len(last))(*last),
            len(rows),
            len(last),
            self._floats(norm),
            self._floats(rotary.frequencies),
            *(self.hidden, self.inner, heads, self.kv_heads, self.head_dim, 0, 0),
            *(eps, rotary.scale, fast),
        )
        self._library.c.quept_fit(ctypes.byref(self._model))

    def keep(self, buffers: Sequence[tuple[Kept, Kept]]) -> CacheTable:
        """Returns the table of a cache's keys and values, a pair for each layer; ValueError where C cannot
        read them."""
        if len(buffers) != self._model.layers_count:
            raise ValueError(f"{self._model.layers_count} layers have keys and values; got {len(buffers)}")
        room = min(kept.codes.shape[-2] for pair in buffers for kept in pair)
        rows = [_Cache(*(self._kept(kept) for kept in pair), pair[0].codes.shape[-2]) for pair in buffers]
        return CacheTable((_Cache * len(rows))(*rows), room, tuple(buffers))

    def step(
        self,
        table: CacheTable,
        token: int,
        position: int,
        pool: Pool | None = None,
        slices: Tensor | None = None,
    ) -> Tensor:
        """Reads one token, of which `position` are in the cache before it -> logits (vocabulary,) float32.
        slices (layers, 7) uint8: is told how many slices of nested codes each layer read."""
        if not (0 <= token < self.vocabulary and 0 <= position < table.room):
            raise IndexError(f"token {token} at {position}: {self.vocabulary} are known, {table.room} fit")
        logits = torch.empty(self.vocabulary, dtype=torch.float32)
        library, model = self._library, ctypes.byref(self._model)
        given = (pool or library.pool(), library.products, model, table.pointers, token, position)
        told = None if slices is None else slices.data_ptr()
        if library.c.quept_step(*given, logits.data_ptr(), told):
            raise MemoryError("no memory for a step of decoding")
        return logits

    def _check(self, layer: Layer, heads: int) -> None:
        hidden, inner, keys = self.hidden, self.inner, self.kv_heads * self.head_dim
        queries = heads * self.head_dim
        expected = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
        expected |= {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
        odd = [name for name, shape in expected.items() if getattr(layer, name).shape != shape]
        if odd or heads % self.kv_heads:
            raise ValueError(f"{', '.join(odd) or 'heads'} of a layer have another shape than its model's")
        for field in fields(Layer):
            part = getattr(layer, field.name)
            if isinstance(part, Tensor) and part.numel() not in (hidden, self.head_dim):
                raise ValueError(f"{field.name} has {part.numel()} numbers")
            if (
                isinstance(part, Linear)
                and part.bias is not None
                and tuple(part.bias.shape) != part.shape[:1]
            ):
                raise ValueError(f"the bias of {field.name} has {part.bias.numel()} numbers")

    def _layer(self, layer: Layer, number: int) -> _Layer:
        made = {}
        for field in fields(Layer):
            part = getattr(layer, field.name)
            made[field.name] = self._linear(part) if isinstance(part, Linear) else self._floats(part)
        for place, name in enumerate(LINEARS, number * len(LINEARS)):
            made[name].place = place
        return _Layer(**made)

    def _linear(self, linear: Linear) -> _Linear:
        weight, bias = linear.weight, self._floats(linear.bias)
        if not linear.depths:
            return _Linear(DepthTable(self._weight(weight), None), bias, None, UNTOLD)
        self._kept_alive.append(weight)
        routing = pointer(weight.structure) if isinstance(weight, Routing) else None
        return _Linear(linear.depths[0].structure, bias, routing, UNTOLD)

    def _weight(self, weight: PackedWeight | Tensor) -> ctypes._Pointer:
        if isinstance(weight, PackedWeight):
            structure = weight.structure
        elif weight.dtype in DENSE and weight.is_contiguous() and weight.device.type == "cpu":
            rows, columns = weight.shape
            structure = Weight(weight.data_ptr(), None, None, rows, columns, DENSE[weight.dtype], columns)
        else:
            raise ValueError("a dense weight is contiguous, float32 or bfloat16, on the CPU")
        self._kept_alive += [weight, structure]
        return pointer(structure)

    def _floats(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.detach().float().contiguous()
        self._kept_alive.append(tensor)
        return tensor.data_ptr()

    def _kept(self, kept: Kept) -> _Kept:
        codes, dim = kept.codes, self.head_dim
        bits = kept.bits or DENSE.get(codes.dtype)
        width = dim if kept.bits is None else dim // 8 * kept.bits
        others = [t for t in (kept.scales, kept.zeros) if t is not None]
        group = dim // others[0].shape[-1] if others else dim
        whole = all(t.is_contiguous() and t.device.type == "cpu" for t in (codes, *others))
        rows = codes.shape[:-1]
        alike = all(t.shape == (*rows, dim // group) for t in others)
        if not (bits and whole and alike and codes.shape[-1] == width and rows[-2] == self.kv_heads):
            raise ValueError("keys and values of another form than a step reads")
        if rows[:-2].numel() != 1 or (kept.bits is not None and (len(others) != 2 or group % 8 or dim % 8)):
            raise ValueError("keys and values of another form than a step reads")
        places = [None if t is None else t.data_ptr() for t in (codes, kept.scales, kept.zeros)]
        return _Kept(*places, bits, group, kept.clip)


def _stretches(weight: object) -> tuple:
    return weight.parts if isinstance(weight, PackedRows) else (weight,)


def _head_parts(head: Linear) -> list[Linear]:
    """A head for each stretch of its rows, with its part of the bias."""
    parts = _stretches(head.weight)
    if len(parts) == 1:
        return [head]
    rows = [part.shape[0] for part in parts]
    biases = [None] * len(parts) if head.bias is None else head.bias.split(rows)
    return [Linear(part, bias) for part, bias in zip(parts, biases, strict=True)]


def _nested_weights(layer: Layer) -> list[int]:
    linears = [getattr(layer, name) for name in LINEARS]
    return [linear.shape[0] * linear.shape[1] if linear.depths else 0 for linear in linears]
