"""A language model as a folder, as the libraries read it: config.json, model.safetensors, the tokenizer's
files and the plan.

What a format adds is how a quantized layer is stored (`parts` and `store`, read again by `load`) and what
config.json says of it (`quantization`). Every text is filled up with spaces to the bytes that the longest one
would take, so that a folder has the size that was computed for it whatever its plan says.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor

from quept.engines import Setting
from quept.files import dtype_name, save_tensors, tensors_header
from quept.models import FAMILIES
from quept.numerics.grid import Quantized, dequantize
from quept.numerics.packing import unpack
from quept.plan import FULL, QUANTIZED_BITS, PrecisionPlan
from quept.runtime import ElasticModel

from .base import (
    PLAN,
    Compared,
    Exporter,
    ExportError,
    Progress,
    full_nbytes,
    plan_room,
    plan_text,
    settings_of,
)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
GROUPS = (128, 64, 32)  # columns per group that engines know
Kind = tuple[torch.dtype, tuple[int, ...]]


class Folder(Exporter):
    """A format of such folders. families: of the models that its engines know, see quept.models.families."""

    families: ClassVar[tuple[str, ...]] = ()

    def parts(self, rows: int, columns: int, bits: int, group: int) -> Mapping[str, Kind]:
        """Returns the tensors of a quantized weight by what follows its layer's name."""
        raise NotImplementedError

    def store(self, packed: Quantized) -> Mapping[str, Tensor]:
        """Returns those tensors."""
        raise NotImplementedError

    def load(self, stored: Mapping[str, Tensor], packed: Quantized) -> tuple[Tensor, Tensor]:
        """Returns the codes (out, in) uint8 and the values (out, in) float32 that an engine reads out of what
        `store` gave for a weight of this form."""
        raise NotImplementedError

    def quantization(self, elastic: ElasticModel, settings: Mapping[str, Setting]) -> Mapping[str, Any]:
        """Returns what config.json says of these settings of the layers and embeddings."""
        raise NotImplementedError

    def lacks(self, elastic: ElasticModel) -> str | None:
        kind = getattr(elastic.config, "model_type", "")
        if any(kind in FAMILIES[name].model_types for name in self.families):
            return None
        kinds = {"vision": "classifiers of pictures", "vision-language": "models that see"}
        what = kinds.get(elastic.kind, f"models of type {kind}")
        return f"{self.title} is not written for {what}: its engines read {_listed(self.families)}"

    def nbytes(self, rows: int, columns: int, bits: Setting, group: int) -> int:
        if bits == FULL:
            return full_nbytes(rows, columns)
        parts = self.parts(rows, columns, bits, group).values()
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in parts)

    def overhead(self, elastic: ElasticModel) -> int:
        texts = sum(map(len, companions(elastic).values())) + plan_room(elastic)
        return elastic.sizes.fixed + 8 + self._room(elastic) + self._config_room(elastic) + texts

    def fill(self, elastic: ElasticModel, plan: PrecisionPlan, out: Path, progress: Progress) -> None:
        settings = settings_of(elastic, plan)
        for name, content in companions(elastic).items():
            (out / name).write_bytes(content)
        (out / PLAN).write_text(plan_text(elastic, plan).ljust(plan_room(elastic)), "ascii")
        (out / CONFIG).write_text(self._config(elastic, settings).ljust(self._config_room(elastic)), "ascii")
        tensors: dict[str, Tensor] = {}
        for name, parameter in elastic.base.named_parameters():
            layer = name.removesuffix(".weight")
            progress("packing", len(tensors) / sum(1 for _ in elastic.base.parameters()))
            if settings.get(layer, FULL) == FULL:
                tensors[name] = parameter.detach()
            else:
                stored = self.store(elastic.packed(layer, settings[layer]))
                tensors |= {f"{layer}.{part}": tensor for part, tensor in stored.items()}
        save_tensors(out / WEIGHTS, tensors, {"format": "pt"}, self._room(elastic))

    def compare(self, elastic: ElasticModel, plan: PrecisionPlan, out: Path) -> Compared:
        settings, layers, weights, relative = settings_of(elastic, plan), 0, 0, 0.0
        with safe_open(out / WEIGHTS, framework="pt") as file:
            for name, parameter in elastic.base.named_parameters():
                layer = name.removesuffix(".weight")
                if settings.get(layer, FULL) == FULL:
                    if not torch.equal(file.get_tensor(name), parameter.detach().cpu()):
                        raise ExportError(_damaged(name))
                    continue
                packed = elastic.packed(layer, settings[layer])
                stored = {part: file.get_tensor(f"{layer}.{part}") for part in self.store(packed)}
                codes, values = self.load(stored, packed)
                if not torch.equal(codes, unpack(packed.codes.cpu(), packed.bits, packed.columns)):
                    raise ExportError(_damaged(layer))
                wanted = dequantize(packed).cpu()
                off = float((values - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
                layers, weights, relative = layers + 1, weights + codes.numel(), max(relative, off)
        size = sum(path.stat().st_size for path in out.iterdir())
        computed = self.sizes(elastic).deploy(plan)
        assert size == computed, f"{size} bytes written, {computed} computed"
        return Compared(layers, weights, relative, size)

    def _config(self, elastic: ElasticModel, settings: Mapping[str, Setting]) -> str:
        return json.dumps(config_of(elastic) | self.quantization(elastic, settings), indent=1) + "\n"

    def _config_room(self, elastic: ElasticModel) -> int:
        """Bytes that config.json takes at most: every layer quantized, at all the widths there are."""
        there = {name: [bits for bits in held if bits != FULL] for name, held in self.places(elastic).items()}
        settings = {
            name: widths[place % len(widths)] if widths else FULL
            for place, (name, widths) in enumerate(there.items())
        }
        return len(self._config(elastic, settings)) + 64 * len(QUANTIZED_BITS)

    def _room(self, elastic: ElasticModel) -> int:
        """Bytes that the header of the tensors takes at most: every layer in all the parts there are."""
        shapes = dict(self._weights(elastic))
        kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, parameter in elastic.base.named_parameters():
            layer = name.removesuffix(".weight")
            if layer not in shapes:
                kinds[name] = (dtype_name(parameter.dtype), tuple(parameter.shape))
                continue
            rows, columns, group = shapes[layer]
            for bits in QUANTIZED_BITS:
                parts = self.parts(rows, columns, bits, group).items()
                kinds |= {f"{layer}.{part}": (dtype_name(dtype), shape) for part, (dtype, shape) in parts}
        header = len(tensors_header(kinds, {"format": "pt"}))
        return -(-(header + 20 * len(kinds)) // 8) * 8  # offsets may have more digits


def config_of(elastic: ElasticModel) -> dict[str, Any]:
    """Returns the config of a language model as plain data, without where it was read from. Rotary embeddings
    are told twice: as transformers 5 does (`rope_parameters`), and as everybody reads it (`rope_theta` and
    `rope_scaling`; mlx-lm would otherwise take another theta and say nothing)."""
    config = json.loads(elastic.config.to_json_string(use_diff=False))
    config = {key: value for key, value in config.items() if key != "_name_or_path"}
    rope = dict(config.get("rope_parameters") or {})
    if "rope_theta" in rope:
        config["rope_theta"] = rope.pop("rope_theta")
        scaled = rope.get("rope_type", "default") != "default"
        config["rope_scaling"] = rope if scaled else None
    return config


def companions(elastic: ElasticModel) -> dict[str, bytes]:
    """Returns the files that go along, by name: the tokenizer's, the chat template, how answers end."""
    with tempfile.TemporaryDirectory() as folder:
        elastic.tokenizer.save_pretrained(folder)
        elastic.base.generation_config.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def file_group(columns: int, group: int) -> int:
    """Returns the columns per group in the file: the largest of GROUPS that divides ours and the row; 0 if
    none."""
    return next((size for size in GROUPS if group % size == 0 and columns % size == 0), 0)


def regrouped(scales: Tensor, columns: int, old: int, new: int) -> Tensor:
    """(out, groups of `old` columns) -> (out, groups of `new`), the same number for every column."""
    return scales if new == old else scales.repeat_interleave(old // new, 1)[:, : columns // new]


def _damaged(name: str) -> str:
    return f"{name} does not read back as it was written: the disk may be full or failing"


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
