"""One plan as a plain folder of transformers or timm in 16 bits, whose weights have the plan's values: it
loads anywhere and saves nothing.

config.json, model.safetensors and, of a language model, tokenizer, chat template and generation config, as
`from_pretrained` or timm reads them; quept-plan.json says which plan it was. Values of quantized weights are
rounded once more, to the dtype that the model is stored in.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from quept.engines import GRADED_WIDTHS, WIDTHS, Setting
from quept.files import dtype_name, save_tensors, tensors_header
from quept.models.unfused import as_stored
from quept.plan import FULL, PrecisionPlan
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
from .folder import config_of

WEIGHTS = "model.safetensors"
METADATA = {"format": "pt"}


class Hf(Exporter):
    """See the module docstring."""

    name, title = "hf", "a plain 16-bit folder"
    engines = ("transformers", "timm", "whatever converts from these")
    exact = "values are rounded once more, to 16 bits; the file is as large as the model was"
    commands = ("transformers chat {path}", "quept evaluate {path}")

    def lacks(self, elastic: ElasticModel) -> str | None:
        if elastic.vision is not None and elastic.vision.statistics:
            return "a plain folder needs the batch norm that was folded into the convolutions: export to ONNX"
        return None

    def widths(self, columns: int, group: int, embedding: bool = False) -> Mapping[Setting, str]:
        graded = GRADED_WIDTHS if embedding else ()
        return dict.fromkeys((*WIDTHS, *graded, FULL), "16 bits")

    def nbytes(self, rows: int, columns: int, bits: Setting, group: int) -> int:
        return full_nbytes(rows, columns)

    def overhead(self, elastic: ElasticModel) -> int:
        state = as_stored(elastic.base, _parameters(elastic))
        kinds = {name: (dtype_name(t.dtype), tuple(t.shape)) for name, t in state.items()}
        weights = sum(self.nbytes(rows, columns, FULL, 0) for _, (rows, columns, _) in self._weights(elastic))
        with tempfile.TemporaryDirectory() as folder:
            _write_beside(elastic, PrecisionPlan.full(), Path(folder))
            beside = _nbytes(Path(folder))
        return beside + len(tensors_header(kinds, METADATA)) + sum(t.nbytes for t in state.values()) - weights

    def fill(self, elastic: ElasticModel, plan: PrecisionPlan, out: Path, progress: Progress) -> None:
        state, settings = _parameters(elastic), settings_of(elastic, plan)
        for done, (layer, setting) in enumerate(settings.items()):
            progress("writing values", done / len(settings))
            if setting != FULL:
                weight = state[f"{layer}.weight"]
                values = _values(elastic, layer, setting)
                state[f"{layer}.weight"] = values.view(weight.shape).to(weight.dtype)
        save_tensors(out / WEIGHTS, as_stored(elastic.base, state), METADATA)
        _write_beside(elastic, plan, out)

    def compare(self, elastic: ElasticModel, plan: PrecisionPlan, out: Path) -> Compared:
        settings, layers, weights, worst = settings_of(elastic, plan), 0, 0, 0.0
        state = _parameters(elastic)
        for layer, setting in settings.items():
            if setting != FULL:
                values, name = _values(elastic, layer, setting), f"{layer}.weight"
                rounded = values.view(state[name].shape).to(state[name].dtype)
                off = float((rounded.view(values.shape).float() - values).abs().max() / _largest(values))
                state[name], layers, weights = rounded, layers + 1, weights + values.numel()
                worst = max(worst, off)
        read, wanted = load_file(out / WEIGHTS), as_stored(elastic.base, state)
        if read.keys() != wanted.keys() or not all(torch.equal(read[n], t.cpu()) for n, t in wanted.items()):
            raise ExportError("the folder does not read back as it was written: the disk may be failing")
        size, computed = _nbytes(out), self.sizes(elastic).deploy(plan)
        assert size == computed, f"{size} bytes written, {computed} computed"
        return Compared(layers, weights, worst, size)


def _largest(values: Tensor) -> Tensor:
    return values.abs().max().clamp(min=1e-30)


def _parameters(elastic: ElasticModel) -> dict[str, Tensor]:
    """Parameters, tied ones once, and the buffers that a model's file holds."""
    owners = {name for name, _ in elastic.base.named_parameters()}
    tied = {name for name, _ in elastic.base.named_parameters(remove_duplicate=False)} - owners
    return {name: t.detach() for name, t in elastic.base.state_dict().items() if name not in tied}


def _values(elastic: ElasticModel, layer: str, setting: Setting) -> Tensor:
    return elastic.values(layer, setting).cpu()


def _write_beside(elastic: ElasticModel, plan: PrecisionPlan, folder: Path) -> None:
    """All but the weights; the plan is filled up to the room that any plan of the model needs."""
    (folder / PLAN).write_text(plan_text(elastic, plan).ljust(plan_room(elastic)), "utf-8")
    config = elastic.config
    if not isinstance(config, Mapping):
        stored = {"architectures": [type(elastic.base).__name__], "dtype": dtype_name(elastic.base.dtype)}
        config = config_of(elastic) | stored
        if hasattr(elastic.base, "generation_config"):
            elastic.base.generation_config.save_pretrained(folder)
        (elastic.processor or elastic.tokenizer).save_pretrained(folder)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, "utf-8")


def _nbytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
