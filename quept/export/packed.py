"""One plan as one safetensors file: packed codes, scales and zero-points, and everything that is not
quantized in 16 bits.

    {layer}.codes    uint8    (out, packed row)      2..8 bits a weight, see numerics.packing
    {layer}.scales   float16  (out, groups)
    {layer}.zeros    uint8    (out, packed row)      not at 8 bits, where every zero-point is 128
    {layer}.{i}.*    the same of each stretch of rows of embeddings at a graded width
    {parameter}      16 bits                         whatever is at 16 bits, norms, biases; ties once

The bytes of these tensors are exactly `elastic.sizes.deploy(plan)`; the header before them, which is filled
up to the room that any plan of the model needs, makes the file that of `Packed().sizes`. The metadata hold
what else is needed: format and version, the plan, the model's config and fingerprint, the grid of every
layer, in how many stretches embeddings at a graded width are stored, which parameters are tied, the shape of
a quantized weight that is no matrix (patches are embedded by a convolution, whose kernels are stored as
rows), and the static grids of the activations that the plan rounds.
The tokenizer is not in the file. Activation and KV widths are in the plan, for whoever runs it; they change
no stored tensor. `open_packed` gives the values of the view, bit for bit; of what batch norm was folded into
the nearest in 16 bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig

from quept.engines import GRADED_WIDTHS, WIDTHS, Setting
from quept.files import save_tensors, tensors_header
from quept.numerics.graded import Graded, graded_bytes, stretches
from quept.numerics.grid import Quantized, dequantize, quantized_bytes
from quept.plan import ACTIVATION_BITS, FULL, PrecisionPlan
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

FORMAT, VERSION = "quept-packed", 1
PARTS = ("codes", "scales", "zeros")


@dataclass(frozen=True)
class PackedModel:
    """An exported plan, read back. grids: `{layer: (bits, group, columns)}` of the quantized layers; tied:
    `{parameter: its owner}`; shapes: `{layer: shape}` of quantized weights that are no matrices; static:
    `{layer: ((scale, zero-point) of its input, then of query, key and value if it gives these)}`, none where
    activations are rounded per token; stretches: `{layer: their number}` of embeddings at a graded width."""

    plan: PrecisionPlan
    model: str
    fingerprint: str
    config: Mapping[str, object]
    grids: Mapping[str, tuple[int, int, int]]
    tied: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    static: Mapping[str, tuple[tuple[float, int], ...]] = field(default_factory=dict)
    stretches: Mapping[str, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors: the deploy size."""
        return sum(t.nbytes for t in self.tensors.values())

    def packed(self, layer: str) -> Quantized:
        """A quantized layer, or a stretch of rows, as it is stored."""
        return Quantized(*self.grids[layer], *(self.tensors.get(f"{layer}.{part}") for part in PARTS))

    def state(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Values of every parameter by its name in the model, tied ones under each of their names: what
        `load_state_dict` takes."""
        rows = {f"{layer}.{i}" for layer, count in self.stretches.items() for i in range(count)}
        layers = [*self.stretches, *(layer for layer in self.grids if layer not in rows)]
        state = {f"{layer}.weight": self._values(layer).to(dtype) for layer in layers}
        parts = {f"{layer}.{part}" for layer in self.grids for part in PARTS}
        state |= {name: tensor.to(dtype) for name, tensor in self.tensors.items() if name not in parts}
        return state | {name: state[owner] for name, owner in self.tied.items()}

    def _values(self, layer: str) -> Tensor:
        if layer in self.stretches:
            return torch.cat([dequantize(self.packed(f"{layer}.{i}")) for i in range(self.stretches[layer])])
        values = dequantize(self.packed(layer))
        return values.view(self.shapes.get(layer, values.shape))


class Packed(Exporter):
    """See the module docstring. `write` gives `Compared`; the function `export` gives what was read."""

    name, title, suffix = "packed", "quept", ".safetensors"
    engines = ("quept",)
    ours = True

    def widths(self, columns: int, group: int, embedding: bool = False) -> Mapping[Setting, str]:
        graded = {bits: f"W{bits}" for bits in GRADED_WIDTHS if embedding}
        return WIDTHS | graded | {FULL: "16 bits"}

    def nbytes(self, rows: int, columns: int, bits: Setting, group: int) -> int:
        if bits == FULL:
            return full_nbytes(rows, columns)
        size = graded_bytes if isinstance(bits, float) else quantized_bytes
        return size(rows, columns, bits, group)

    def overhead(self, elastic: ElasticModel) -> int:
        return elastic.sizes.fixed + 8 + _room(elastic)

    def fill(self, elastic: ElasticModel, plan: PrecisionPlan, out: Path, progress: Progress) -> None:
        progress("packing", None)
        tensors, grids = _tensors(elastic, plan)
        save_tensors(out, tensors, _metadata(elastic, plan, grids), _room(elastic))

    def compare(self, elastic: ElasticModel, plan: PrecisionPlan, out: Path) -> Compared:
        read, (tensors, grids) = open_packed(out), _tensors(elastic, plan)
        if set(read.tensors) != set(tensors) or not all(
            torch.equal(read.tensors[name], t) for name, t in tensors.items()
        ):
            raise ExportError(
                "the file does not read back as it was written: the disk may be full or failing"
            )
        size, computed = out.stat().st_size, self.sizes(elastic).deploy(plan)
        assert size == computed, f"{size} bytes written, {computed} computed"
        weights = sum(grid[2] * len(tensors[f"{layer}.codes"]) for layer, grid in grids.items())
        return Compared(len(grids), weights, 0.0, size)


def export(elastic: ElasticModel, plan: PrecisionPlan, path: str | Path) -> PackedModel:
    """Write the plan to `path`, read it back, compare, and return what was read. The file appears whole or
    not at all.

    Raises PlanError if the plan does not fit the model, OSError where the file cannot be written."""
    Packed().write(elastic, plan, path)
    return open_packed(path)


def open_packed(path: str | Path) -> PackedModel:
    """Read an exported plan. ExportError for a file that is missing, truncated, of another kind, or newer
    than this program."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ExportError(f'{path} is not an exported plan ("format" is not "{FORMAT}")')
            if not metadata.get("version", "").isdecimal() or int(metadata["version"]) > VERSION:
                version = metadata.get("version")
                raise ExportError(
                    f"{path} has version {version}; this program reads up to {VERSION}: update it"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        return PackedModel(
            plan=PrecisionPlan.from_json(metadata["plan"]),
            model=metadata["model"],
            fingerprint=metadata["fingerprint"],
            config=json.loads(metadata["config"]),
            grids={layer: tuple(grid) for layer, grid in json.loads(metadata["grids"]).items()},
            tied=json.loads(metadata["tied"]),
            tensors=tensors,
            shapes={k: tuple(shape) for k, shape in json.loads(metadata.get("shapes", "{}")).items()},
            static={
                layer: tuple((scale, zero) for scale, zero in sites)
                for layer, sites in json.loads(metadata.get("static", "{}")).items()
            },
            stretches=json.loads(metadata.get("stretches", "{}")),
        )
    except FileNotFoundError:
        raise ExportError(f"there is no file {path}") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ExportError(f"{path} is damaged or no exported plan: {error}") from None


def _metadata(elastic: ElasticModel, plan: PrecisionPlan, grids: Mapping[str, object]) -> dict[str, str]:
    shapes = {n: tuple(elastic.base.get_submodule(n).weight.shape) for n in grids if n in elastic.shapes}
    graded = elastic.embeddings if plan.embeddings in GRADED_WIDTHS else ()
    more = {
        "shapes": {layer: shape for layer, shape in shapes.items() if len(shape) != 2},
        "stretches": {n: len([*stretches(elastic.shapes[n][0], plan.embeddings)]) for n in graded},
        "static": _static(elastic, plan),
    }
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "model": elastic.title,
        "fingerprint": elastic.fingerprint,
        "plan": plan_text(elastic, plan),
        "config": json.dumps(_config(elastic.config)),
        "grids": json.dumps(grids),
        "tied": json.dumps(_tied(elastic.base)),
    } | {key: json.dumps(value) for key, value in more.items() if value}


def _room(elastic: ElasticModel) -> int:
    """Bytes that the header of any plan fits into: every layer in three tensors, embeddings in as many
    stretches as they can be, the longest plan."""
    kinds, grids, lowest = {}, {}, GRADED_WIDTHS[0]
    graded = elastic.embeddings if lowest in elastic.sizes.embeddings else ()
    for name, parameter in elastic.base.named_parameters():
        layer = name.removesuffix(".weight")
        if layer in elastic.sizes.layers or layer in elastic.embeddings:
            rows = enumerate(stretches(len(parameter), lowest)) if layer in graded else ()
            for stored in (layer, *(f"{layer}.{i}" for i, _ in rows)):
                kinds |= {f"{stored}.{part}": ("uint8", tuple(parameter.flatten(1).shape)) for part in PARTS}
                grids[stored] = (8, parameter.shape[-1], parameter[0].numel())
        else:
            kinds[name] = ("uint8", tuple(parameter.shape))
    metadata = _metadata(elastic, PrecisionPlan.full(), grids)
    metadata |= {"stretches": json.dumps(dict.fromkeys(graded, 8))} if graded else {}
    static = max(
        (json.dumps(_static(elastic, PrecisionPlan.uniform(4, a))) for a in ACTIVATION_BITS), key=len
    )
    header = tensors_header(kinds, metadata | {"static": static, "plan": '"' * plan_room(elastic)})
    return -(-(len(header) + 20 * len(kinds)) // 8) * 8  # offsets of wider elements have more digits


def _tensors(
    elastic: ElasticModel, plan: PrecisionPlan
) -> tuple[dict[str, Tensor], dict[str, tuple[int, int, int]]]:
    """What is stored, by name, and the grids of the quantized layers."""
    quantized = {name: bits for name, bits in settings_of(elastic, plan).items() if bits != FULL}
    tensors, grids = {}, {}
    stored = half_of(next(elastic.base.parameters()).dtype)
    for name, parameter in elastic.base.named_parameters():
        layer = name.removesuffix(".weight")
        if layer not in quantized:
            tensors[name] = parameter.detach().to("cpu", stored).contiguous()
            continue
        found = elastic.packed(layer, quantized[layer])
        graded = isinstance(found, Graded)
        named = {f"{layer}.{i}": rows for i, rows in enumerate(found.parts)} if graded else {layer: found}
        for key, packed in named.items():
            grids[key] = (packed.bits, packed.group, packed.columns)
            parts = {f"{key}.{part}": getattr(packed, part) for part in PARTS}
            tensors |= {key: part.cpu().contiguous() for key, part in parts.items() if part is not None}
    return tensors, grids


def _static(elastic: ElasticModel, plan: PrecisionPlan) -> dict[str, list[tuple[float, int]]]:
    grids = {
        layer: elastic.artifact.engine.static(layer).get(bits.activations)
        for layer, bits in plan.resolve(elastic.layers).items()
    }
    return {
        layer: [(scale, int(zero)) for scale, zero in grid.T.tolist()]
        for layer, grid in grids.items()
        if grid is not None
    }


def _config(config: PretrainedConfig | Mapping[str, object]) -> dict[str, object]:
    """The config as plain data, without where it was read from."""
    if isinstance(config, Mapping):
        return dict(config)
    return {
        key: value for key, value in json.loads(config.to_json_string()).items() if key != "_name_or_path"
    }


def _tied(model: torch.nn.Module) -> dict[str, str]:
    """Names of parameters that are another one's tensor: `{name: the name that is stored}`."""
    owners = {id(parameter): name for name, parameter in model.named_parameters()}
    names = model.named_parameters(remove_duplicate=False)
    return {name: owners[id(parameter)] for name, parameter in names if owners[id(parameter)] != name}
