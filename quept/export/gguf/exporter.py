"""One plan as a GGUF file.

Every quantized weight goes into blocks that hold its codes as they are (see `blocks`); weights in 16 bits
stay so, norms, biases and routers are float32. llama.cpp's `llama` wants the rows of q and k of each head
interleaved; codes, scales and zero-points of a row move together. What a file has in one tensor (query, key
and value of Phi-3, an expert after the other) lies there in turn, and has to be at one width. The plan, as
JSON filled up with spaces to the room that any plan of the model needs, and the model's fingerprint are in
the metadata under `quept.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from gguf import GGMLQuantizationType, LlamaFileType
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quept.engines import Setting
from quept.kernels import PackedWeight
from quept.kernels import blocks as in_c
from quept.numerics.grid import Quantized
from quept.plan import FULL, PrecisionPlan
from quept.runtime import ElasticModel
from quept.runtime.generate import end_tokens
from quept.zoo.gguf_architectures import Architecture, written_as
from quept.zoo.gguf_llama import ROPE_FREQS

from ..base import Compared, Exporter, ExportError, Progress, full_nbytes, plan_room, plan_text, settings_of
from . import blocks, keys, vocabulary

INSTEAD = "export it as packed or hf"
ROWS = 16  # of which the rows of a part of a tensor are a multiple: it ends where another may begin
_FILE_TYPES = {"Q4_K": "MOSTLY_Q4_K_S", "Q5_K": "MOSTLY_Q5_K_S"}


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file: the parameters that it holds one behind the other, its kind (a name of gguf's)
    and shape."""

    parameters: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(parameter.removesuffix(".weight") for parameter in self.parameters)

    @property
    def nbytes(self) -> int:
        numbers = torch.Size(self.shape).numel()
        if self.kind in blocks.READ:
            return blocks.nbytes(numbers // self.shape[-1], self.shape[-1], self.kind)
        return numbers * (4 if self.kind == "F32" else 2)


class Gguf(Exporter):
    """See the module docstring."""

    name, title, suffix = "gguf", "GGUF", ".gguf"
    kind, instead = "language", INSTEAD
    engines = ("llama.cpp", "LM Studio", "Ollama")
    exact = "codes and scales are kept; the offset of each group of 2 to 5 bits is rounded to 16 bits"
    commands = ("llama-server -m {path}", "llama-cli -m {path}", "quept run {path}")

    def lacks(self, elastic: ElasticModel) -> str | None:
        if lacking := super().lacks(elastic):
            return lacking
        problem = keys.problem(elastic.config) or vocabulary.problem(elastic.tokenizer)
        problem = problem or next(_unheld(elastic), None)
        return f"{elastic.title} does not fit GGUF: {problem}; {INSTEAD}" if problem else None

    def widths(self, columns: int, group: int, embedding: bool = False) -> Mapping[Setting, str]:
        return blocks.kinds(columns, group) | {FULL: "16 bits"}

    def nbytes(self, rows: int, columns: int, bits: Setting, group: int) -> int:
        if bits == FULL:
            return keys.filled_up(full_nbytes(rows, columns))
        return keys.filled_up(blocks.nbytes(rows, columns, blocks.kinds(columns, group)[bits]))

    def overhead(self, elastic: ElasticModel) -> int:
        tensors = self._tensors(elastic, PrecisionPlan.full())
        small = sum(keys.filled_up(t.nbytes) for t in tensors.values() if t.kind == "F32")
        return len(self._header(elastic, PrecisionPlan.full(), tensors)) + small

    def ties(self, elastic: ElasticModel) -> tuple[tuple[str, ...], ...]:
        joined = (tensor.layers for tensor in self._tensors(elastic, PrecisionPlan.full()).values())
        return tuple(layers for layers in joined if len(layers) > 1 and layers[0] in elastic.sizes.layers)

    def fill(self, elastic: ElasticModel, plan: PrecisionPlan, out: Path, progress: Progress) -> None:
        tensors, settings = self._tensors(elastic, plan), settings_of(elastic, plan)
        with open(out, "wb") as file:
            file.write(self._header(elastic, plan, tensors))
            for done, (name, tensor) in enumerate(tensors.items()):
                progress("writing GGUF", done / len(tensors))
                for parameter, layer in zip(tensor.parameters, tensor.layers, strict=True):
                    if tensor.kind not in blocks.READ:
                        content = _plain(elastic, name, parameter, tensor.kind)
                    elif (weight := _packed(elastic, layer, settings[layer], tensor.kind)) is not None:
                        content = in_c.to_blocks(weight, _order(elastic, parameter))
                    else:
                        content = blocks.to_blocks(
                            _in_order(elastic, parameter, settings[layer]), tensor.kind
                        )
                    file.write(content.contiguous().view(torch.uint8).numpy().data)
                file.write(bytes(keys.filled_up(tensor.nbytes) - tensor.nbytes))

    def compare(self, elastic: ElasticModel, plan: PrecisionPlan, out: Path) -> Compared:
        tensors, settings = self._tensors(elastic, plan), settings_of(elastic, plan)
        head = self._header(elastic, plan, tensors)
        size, computed = (
            out.stat().st_size,
            len(head) + sum(keys.filled_up(t.nbytes) for t in tensors.values()),
        )
        read = torch.from_file(str(out), shared=False, size=size, dtype=torch.uint8)
        damaged = ExportError(
            "the file does not read back as it was written: the disk may be full or failing"
        )
        if size != computed or bytes(read[: len(head)].numpy()) != head:
            raise damaged
        layers, weights, worst, at = 0, 0, 0.0, len(head)
        for name, tensor in tensors.items():
            begin, at = at, at + keys.filled_up(tensor.nbytes)
            for parameter, layer in zip(tensor.parameters, tensor.layers, strict=True):
                if tensor.kind not in blocks.READ:
                    wanted = _plain(elastic, name, parameter, tensor.kind).reshape(-1).view(torch.uint8)
                    if not torch.equal(read[begin : begin + len(wanted)], wanted):
                        raise damaged
                    begin += len(wanted)
                    continue
                rows, columns = elastic.base.get_parameter(parameter).shape
                end = begin + blocks.nbytes(rows, columns, tensor.kind)
                if (weight := _packed(elastic, layer, settings[layer], tensor.kind)) is not None:
                    off = in_c.difference(weight, read[begin:end], _order(elastic, parameter))
                else:
                    packed = _in_order(elastic, parameter, settings[layer])
                    off = blocks.difference(read[begin:end], packed, tensor.kind)
                if off is None:
                    raise damaged
                begin, layers, weights = end, layers + 1, weights + rows * columns
                worst = max(worst, off)
        return Compared(layers, weights, worst, size)

    def tensor_types(self, elastic: ElasticModel, plan: PrecisionPlan) -> str:
        """Returns a file for `llama-quantize --tensor-type-file`, for those who round the original model
        themselves: a line `^blk\\.0\\.attn_q\\.weight$=q4_1` for each weight."""
        tensors = self._tensors(elastic, plan).items()
        lines = [f"^{re.escape(name)}$={t.kind.lower()}" for name, t in tensors if len(t.shape) > 1]
        return "".join(f"{line}\n" for line in lines)

    def _tensors(self, elastic: ElasticModel, plan: PrecisionPlan) -> dict[str, _Tensor]:
        """What the file holds, by llama.cpp's names, in the order of the model."""
        settings, group = settings_of(elastic, plan), {n: w for n, w in self._weights(elastic)}
        found: dict[str, _Tensor] = {}
        for name, parts in _joined(elastic).items():
            values = [elastic.base.get_parameter(part) for part in parts]
            layer, kind = parts[0].removesuffix(".weight"), "F32"
            if settings.get(layer, FULL) != FULL:
                _, columns, size = group[layer]
                kind = blocks.kinds(columns, size)[settings[layer]]
            elif layer in settings:
                kind = "BF16" if values[0].dtype == torch.bfloat16 else "F16"
            rows = sum(len(value) for value in values), *values[0].shape[1:]
            experts = (len(values), *values[0].shape)
            found[name] = _Tensor(parts, kind, experts if _of_experts(name) else rows)
        if (divisors := keys.rope_divisors(elastic.config)) is not None:
            found[ROPE_FREQS] = _Tensor(("",), "F32", divisors.shape)
        return found

    def _header(self, elastic: ElasticModel, plan: PrecisionPlan, tensors: Mapping[str, _Tensor]) -> bytes:
        config, tokenizer = elastic.config, elastic.tokenizer
        many = [t.kind for t in tensors.values() if len(t.shape) > 1 and t.kind != "F32"]
        commonest = max(sorted(set(many)), key=many.count)
        ends = tuple(sorted(end_tokens(elastic.base, tokenizer)))
        about = {
            "general.architecture": written_as(config.model_type).name,
            "general.type": "model",
            "general.name": elastic.title,
            "general.file_type": int(LlamaFileType[_FILE_TYPES.get(commonest, f"MOSTLY_{commonest}")]),
            "general.quantization_version": 2,
            "quept.plan": plan_text(elastic, plan).ljust(plan_room(elastic)),
            "quept.fingerprint": elastic.fingerprint,
        }
        rows = elastic.base.get_input_embeddings().weight.shape[0]
        listed = {name: (int(GGMLQuantizationType[t.kind]), t.shape, t.nbytes) for name, t in tensors.items()}
        return keys.header(about | keys.config_keys(config), _words(tokenizer, rows, ends), listed)


@lru_cache(maxsize=1)
def _words(tokenizer: PreTrainedTokenizerBase, rows: int, ends: tuple[int, ...]) -> tuple[int, bytes]:
    """How many metadata tell of a tokenizer, and their bytes: a tenth of a second for 50,000 pieces, wanted
    three times for one file."""
    found = vocabulary.vocabulary(tokenizer, rows, ends)
    return len(found), keys.packed(found)


def _name(parameter: str, architecture: Architecture) -> str | None:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`; None for one that llama.cpp does not
    have."""
    layer, _, leaf = parameter.rpartition(".")
    name = architecture.tensor_of(layer)
    return name and f"{name}.{leaf}"


def _joined(elastic: ElasticModel) -> dict[str, tuple[str, ...]]:
    """`{tensor of the file: its parameters}`, in the order of the model."""
    found: dict[str, tuple[str, ...]] = {}
    for parameter, _ in elastic.base.named_parameters():
        name = _name(parameter, written_as(elastic.config.model_type))
        found[name] = (*found.get(name, ()), parameter)
    return found


def _of_experts(name: str) -> bool:
    return "_exps." in name


def _unheld(elastic: ElasticModel) -> Iterator[str]:
    """What of a model of a known type a file cannot hold, as sentences."""
    for name, parts in _joined(elastic).items():
        if name is None:
            yield f"it has a parameter {min(parts)} that llama.cpp does not know"
        odd = [part for part in parts if elastic.base.get_parameter(part).shape[0] % ROWS]
        if odd and len(parts) > 1:
            yield f"the rows of {odd[0]}, a part of {name}, are no multiple of {ROWS}"


def tensor_names(elastic: ElasticModel) -> dict[str, str]:
    """Returns llama.cpp's name of every parameter that is a tensor of its own: `{blk.3.attn_q.weight:
    model.layers.3.self_attn...}`."""
    return {name: parts[0] for name, parts in _joined(elastic).items() if len(parts) == 1}


def row_order(elastic: ElasticModel, parameter: str) -> Tensor | slice:
    """Returns which rows of a parameter follow one another in the file: of q and k each head's halves
    interleaved where the architecture wants that."""
    heads = {".q_proj": elastic.config.num_attention_heads, ".k_proj": elastic.config.num_key_value_heads}
    heads = next((count for part, count in heads.items() if part in parameter), None)
    if heads is None or not written_as(elastic.config.model_type).interleaved:
        return slice(None)
    return _interleaved(elastic.base.get_parameter(parameter).shape[0], heads)


@lru_cache(maxsize=8)
def _interleaved(rows: int, heads: int) -> Tensor:
    return torch.arange(rows).view(heads, 2, -1).transpose(1, 2).flatten()


def _packed(elastic: ElasticModel, layer: str, setting: Setting, kind: str) -> PackedWeight | None:
    """The weight that the view multiplies by, where C lays its codes into blocks of this kind."""
    if kind not in blocks.SMALL.values():
        return None
    weight = elastic.bank.weight(layer, setting)
    return weight if in_c.fits(weight) else None


def _order(elastic: ElasticModel, parameter: str) -> Tensor | None:
    order = row_order(elastic, parameter)
    return order if isinstance(order, Tensor) else None


def _in_order(elastic: ElasticModel, parameter: str, setting: Setting) -> Quantized:
    packed = elastic.packed(parameter.removesuffix(".weight"), setting)
    order = row_order(elastic, parameter)
    parts = {"codes": packed.codes, "scales": packed.scales, "zeros": packed.zeros}
    return replace(packed, **{name: t if t is None else t.cpu()[order] for name, t in parts.items()})


def _plain(elastic: ElasticModel, name: str, parameter: str, kind: str) -> Tensor:
    if name == ROPE_FREQS:
        return torch.from_numpy(keys.rope_divisors(elastic.config))
    value = elastic.base.get_parameter(parameter).detach().cpu()[row_order(elastic, parameter)]
    if name.endswith("norm.weight"):
        return value.float() + written_as(elastic.config.model_type).offset
    return (value.float() if kind == "F32" else value).contiguous()
