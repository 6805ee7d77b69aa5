"""ONNX: a classifier of pictures as one file for onnxruntime, also in a browser.

The graph is torch's own export of the model, for a batch of any size. Each quantized layer is a MatMulNBits
of onnxruntime over our codes:

    B            uint8    (out, groups, group x bits / 8)    codes, the first in the low bits
    scales       float16  (out x groups,)                    s
    zero_points  uint8    (out, ceil(groups x bits / 8))     z; not for 8 bits

There are 2, 4 and 8 bits; 3 lie in 4, and 5 to 7 in 8. Values are ours bit for bit, and products are made in
float32: no `accuracy_level` is set, of which 4 would round activations to 8 bits. Groups are powers of two
from 16 on. Scales and all that is not quantized, the patches' embedding and the head among it, are kept in
16 bits and made float32 as the file is opened. The metadata hold the plan, and how a picture is prepared.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from quept.engines import Setting
from quept.numerics.grid import SYMMETRIC_BITS, SYMMETRIC_ZERO, Quantized, dequantize
from quept.numerics.packing import pack, unpack
from quept.plan import FULL, PrecisionPlan
from quept.runtime import ElasticModel

from .base import (
    Compared,
    Exporter,
    ExportError,
    Progress,
    full_nbytes,
    half_of,
    plan_room,
    plan_text,
    settings_of,
)

HELD = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}  # bits of a code -> bits it is stored in
SMALLEST, LARGEST = 16, 256  # columns of a group
UNTRACED = ("eva", "eva-split")  # families whose attention asks for a flag that is no constant when traced
OPSET = 17
DOMAIN = "com.microsoft"
NODE = 512  # bytes of what a layer is told by, beside its numbers and its name, at most
ALONE = 1e-3  # of the largest logit: by how much a picture's answer may hang on how many are asked at once
PADDING = 1 << 15  # of which the length takes as many bytes whatever a plan leaves of it


class Onnx(Exporter):
    """See the module docstring."""

    name, title, suffix = "onnx", "ONNX", ".onnx"
    kind, instead = "vision", "language models go to gguf or mlx, all models to packed"
    engines = ("onnxruntime", "onnxruntime-web")
    commands = (
        "pip install onnxruntime numpy",
        "python -c \"import numpy as n, onnxruntime as o; s = o.InferenceSession('{path}'); "
        'x = s.get_inputs()[0]; print(s.run(None, {{x.name: n.zeros((1, *x.shape[1:]), n.float32)}}))"',
    )

    def lacks(self, elastic: ElasticModel) -> str | None:
        if lacking := super().lacks(elastic):
            return lacking
        if elastic.layout.family in UNTRACED:
            return (
                f"torch cannot trace the attention of {elastic.layout.family} models for ONNX: export to hf"
            )
        return None if find_spec("onnx") else "ONNX needs the package onnx: pip install onnx"

    def widths(self, columns: int, group: int, embedding: bool = False) -> Mapping[Setting, str]:
        held = {} if embedding or not _group(columns, group) else {b: f"{h} bits" for b, h in HELD.items()}
        return held | {FULL: "16 bits"}

    def nbytes(self, rows: int, columns: int, bits: Setting, group: int) -> int:
        if bits == FULL:
            return full_nbytes(rows, columns)
        size, held = _group(columns, group), HELD[bits]
        groups = -(-columns // size)
        zeros = 0 if bits == SYMMETRIC_BITS else -(-groups * held // 8)
        return rows * (groups * size * held // 8 + 2 * groups + zeros)

    def __init__(self):
        self._overheads: WeakKeyDictionary[ElasticModel, int] = WeakKeyDictionary()

    def overhead(self, elastic: ElasticModel) -> int:
        """Measured on a graph without a quantized layer: what is there beside its weights, and room."""
        if elastic not in self._overheads:
            self._overheads[elastic] = self._traced_overhead(elastic)
        return self._overheads[elastic]

    def _traced_overhead(self, elastic: ElasticModel) -> int:
        full = PrecisionPlan.full()
        weights = sum(self.nbytes(rows, columns, FULL, 0) for _, (rows, columns, _) in self._weights(elastic))
        layers = sum(NODE + 8 * len(layer) for layer in elastic.layers)
        rest = _graph(elastic, full, "").ByteSize() - weights
        return rest + layers + plan_room(elastic) + 2 * PADDING

    def fill(self, elastic: ElasticModel, plan: PrecisionPlan, out: Path, progress: Progress) -> None:
        progress("packing", None)
        model = _graph(elastic, plan, plan_text(elastic, plan))
        filled = model.metadata_props.add(key="quept.padding", value=" " * PADDING)
        more = self.sizes(elastic).deploy(plan) - model.ByteSize()
        assert more >= 0, f"a graph of {-more} bytes more than there is room for"
        filled.value += " " * more
        out.write_bytes(model.SerializeToString(deterministic=True))

    def compare(self, elastic: ElasticModel, plan: PrecisionPlan, out: Path) -> Compared:
        import onnx

        stored = {tensor.name: tensor for tensor in onnx.load(out).graph.initializer}
        layers = weights = 0
        for layer, bits in settings_of(elastic, plan).items():
            if bits == FULL:
                continue
            packed = elastic.packed(layer, bits)
            names = {name: f"{name}.16" if name == "scales" else name for name in _parts(packed)}
            parts = {name: stored.get(f"{layer}.{there}") for name, there in names.items()}
            if None in parts.values():
                raise ExportError(f"{layer} is not in the graph as it was written")
            codes, values = _read({name: onnx.numpy_helper.to_array(t) for name, t in parts.items()}, packed)
            ours = unpack(packed.codes.cpu(), packed.bits, packed.columns)
            if not torch.equal(codes, ours) or not torch.equal(values, dequantize(packed).cpu()):
                raise ExportError(
                    f"{layer} does not read back as it was written: the disk may be full or failing"
                )
            layers, weights = layers + 1, weights + codes.numel()
        size, computed = out.stat().st_size, self.sizes(elastic).deploy(plan)
        assert size == computed, f"{size} bytes written, {computed} computed"
        if find_spec("onnxruntime"):
            _check_alone(elastic, out)
        return Compared(layers, weights, 0.0, size)


def _check_alone(elastic: ElasticModel, out: Path) -> None:
    """Raises ExportError where a picture alone has another answer than among others: products of one row have
    code of their own, which was wrong in some releases on processors without AVX-512 (onnxruntime's issue
    29853), though at `accuracy_level` 4 only."""
    import onnxruntime

    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    pixels = torch.randn(3, *elastic.vision.data["input_size"], generator=torch.Generator().manual_seed(0))
    alone, among = (
        torch.from_numpy(session.run(None, {"pixels": p.numpy()})[0]) for p in (pixels[:1], pixels)
    )
    off = float((alone[0] - among[0]).abs().max() / among[0].abs().max())
    if not off < ALONE:
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} computes one picture wrongly on this processor, by "
            f"{off:.0%} of the largest logit: update onnxruntime, or export 8 bits"
        )


class _Product(torch.autograd.Function):
    """The product of one quantized layer, as torch's exporter writes it down; never computed."""

    @staticmethod
    def forward(ctx, x: Tensor, rows: int, columns: int, bits: int, group: int, *parts: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], rows)

    @staticmethod
    def symbolic(g, x, rows: int, columns: int, bits: int, group: int, *parts):
        numbers = {"N_i": rows, "K_i": columns, "bits_i": bits, "block_size_i": group}
        product = g.op(f"{DOMAIN}::MatMulNBits", x, *parts, **numbers)
        shape = x.type().sizes()
        product.setType(x.type().with_sizes([*shape[:-1], rows]) if shape else x.type())
        return product


class _Layer(nn.Module):
    """A linear layer over codes, to be traced; pixelwise: in place of a convolution of 1 x 1."""

    def __init__(self, packed: Quantized, bias: Tensor | None, pixelwise: bool):
        super().__init__()
        self.bias, self.pixelwise = bias, pixelwise
        self.about = (
            len(packed.codes),
            packed.columns,
            HELD[packed.bits],
            _group(packed.columns, packed.group),
        )
        self.names = tuple(_parts(packed))
        for name, tensor in _parts(packed).items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1) if self.pixelwise else x
        y = _Product.apply(x, *self.about, *(getattr(self, name) for name in self.names))
        y = y if self.bias is None else y + self.bias
        return y.permute(0, 3, 1, 2) if self.pixelwise else y


def _graph(elastic: ElasticModel, plan: PrecisionPlan, text: str) -> Any:
    """The whole onnx.ModelProto of a plan but for what fills it up."""
    import onnx

    model, kept = copy.deepcopy(elastic.base).float().eval(), dict(elastic.base.named_parameters())
    quantized = {layer: bits for layer, bits in settings_of(elastic, plan).items() if bits != FULL}
    for layer, bits in quantized.items():
        linear = model.get_submodule(layer)
        pixelwise = layer in elastic.layout.pixelwise
        model.set_submodule(layer, _Layer(elastic.packed(layer, bits), linear.bias, pixelwise))
    traced = io.BytesIO()
    size = elastic.vision.data["input_size"]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the older of torch's two exporters, which needs no more than onnx
        torch.onnx.export(
            model,
            (torch.zeros(2, *size),),
            traced,
            dynamo=False,
            opset_version=OPSET,
            custom_opsets={DOMAIN: 1} if quantized else None,
            do_constant_folding=False,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_axes={"pixels": {0: "pictures"}, "logits": {0: "pictures"}},
        )
    found = onnx.load_from_string(traced.getvalue())
    _in_16_bits(found.graph, kept)
    about = elastic.vision
    metadata = {"plan": text, "data": json.dumps(about.data), "labels": json.dumps(about.labels)}
    for key, value in metadata.items():
        found.metadata_props.add(
            key=f"quept.{key}", value=value.ljust(plan_room(elastic)) if key == "plan" else value
        )
    found.producer_name, found.producer_version = "quept", ""
    return found


def _in_16_bits(graph: Any, kept: Mapping[str, Tensor]) -> None:
    """Stores scales, and what is `kept` but for biases in 32, in 16 bits and casts them: the graph computes
    in float32."""
    from onnx import TensorProto, helper

    casts = []
    for tensor in graph.initializer:
        held, scales = kept.get(tensor.name), tensor.name.endswith(".scales")
        wide = held is not None and held.ndim == 1 and held.dtype == torch.float32
        if tensor.data_type != TensorProto.FLOAT or wide or (held is None and not scales):
            continue
        values = torch.frombuffer(bytearray(tensor.raw_data), dtype=torch.float32)
        narrow = values.to(torch.float16 if held is None else half_of(held.dtype))
        tensor.data_type = TensorProto.BFLOAT16 if narrow.dtype == torch.bfloat16 else TensorProto.FLOAT16
        tensor.raw_data = narrow.view(torch.uint8).numpy().tobytes()
        name, tensor.name = tensor.name, f"{tensor.name}.16"
        casts.append(
            helper.make_node("Cast", [tensor.name], [name], name=f"{name}.cast", to=TensorProto.FLOAT)
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _parts(packed: Quantized) -> dict[str, Tensor]:
    """What MatMulNBits takes beside its input, in order; scales as float32."""
    held, size = HELD[packed.bits], _group(packed.columns, packed.group)
    groups = -(-packed.columns // size)
    codes = _filled(unpack(packed.codes.cpu(), packed.bits, packed.columns), groups * size)
    scales = _regrouped(packed.scales.cpu(), packed, size)
    parts = {"B": pack(codes.view(len(codes), groups, size), held), "scales": scales.float().flatten()}
    if packed.zeros is None:
        return parts
    zeros = _regrouped(unpack(packed.zeros.cpu(), packed.bits, packed.scales.shape[1]), packed, size)
    return parts | {"zero_points": pack(zeros, held)[:, : -(-groups * held // 8)].contiguous()}


def _read(stored: Mapping[str, Any], packed: Quantized) -> tuple[Tensor, Tensor]:
    """Codes (out, in) and values (out, in) float32 out of the tensors of a file."""
    held, (rows, groups, _) = HELD[packed.bits], stored["B"].shape
    codes = unpack(torch.tensor(stored["B"]), held, _group(packed.columns, packed.group))
    scales, zeros = torch.tensor(stored["scales"]).float().view(rows, groups, 1), SYMMETRIC_ZERO
    if "zero_points" in stored:
        stream = torch.tensor(stored["zero_points"])
        zeros = unpack(_filled(stream, -(-groups // 8) * held), held, groups).float()[..., None]
    values = (codes.float() - zeros) * scales
    return tuple(t.reshape(rows, -1)[:, : packed.columns] for t in (codes, values))


def _regrouped(numbers: Tensor, packed: Quantized, size: int) -> Tensor:
    """(out, groups as ours) -> (out, groups of `size` columns)."""
    times = max(1, packed.group // size)
    return numbers.repeat_interleave(times, 1)[:, : -(-packed.columns // size)]


def _filled(rows: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, length - rows.shape[1]))


def _group(columns: int, group: int) -> int:
    """Columns per group in the file: the largest power of two that divides ours or, where one group is the
    whole row, that holds it; 0 if none is from 16 to 256."""
    divides = group & -group
    whole = 1 << max(0, columns - 1).bit_length() if group >= columns else 0
    fitting = [size for size in (min(divides, LARGEST), whole) if SMALLEST <= size <= LARGEST]
    return fitting[0] if fitting else 0
