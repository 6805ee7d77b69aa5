"""One plan as a GGUF file.

Every quantized weight goes into blocks that hold its codes as they are (see `blocks`); weights in 16 bits
stay so, norms and biases are float32. llama.cpp's `llama` wants the rows of q and k of each head interleaved;
codes, scales and zero-points of a row move together. The plan, as JSON filled up with spaces to the room that
any plan of the model needs, and the model's fingerprint are in the metadata under `quept.`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
from quept.zoo.gguf_llama import ROPE_FREQS, TENSORS

from ..base import Compared, Exporter, ExportError, Progress, full_nbytes, plan_room, plan_text, settings_of
from . import blocks, keys, vocabulary

INSTEAD = "export it as packed or hf"
_BLOCK = re.compile(r"model\.layers\.(\d+)\.")
_NAMES = {ours: theirs for theirs, ours in TENSORS.items()}
_FILE_TYPES = {"Q4_K": "MOSTLY_Q4_K_S", "Q5_K": "MOSTLY_Q5_K_S"}


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file: the parameter that it holds, its kind (a name of gguf's) and shape."""

    parameter: str
    kind: str
    shape: tuple[int, ...]

    @property
    def layer(self) -> str:
        return self.parameter.removesuffix(".weight")

    @property
    def nbytes(self) -> int:
        if self.kind in blocks.READ:
            return blocks.nbytes(*self.shape, self.kind)
        return torch.Size(self.shape).numel() * (4 if self.kind == "F32" else 2)


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
        known = {name for name, _ in elastic.base.named_parameters() if _name(name)}
        if odd := sorted({name for name, _ in elastic.base.named_parameters()} - known):
            problem = problem or f"it has a parameter {odd[0]} that llama.cpp does not know"
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

    def fill(self, elastic: ElasticModel, plan: PrecisionPlan, out: Path, progress: Progress) -> None:
        tensors, settings = self._tensors(elastic, plan), settings_of(elastic, plan)
        with open(out, "wb") as file:
            file.write(self._header(elastic, plan, tensors))
            for done, (name, tensor) in enumerate(tensors.items()):
                progress("writing GGUF", done / len(tensors))
                if tensor.kind not in blocks.READ:
                    content = _plain(elastic, name, tensor)
                elif (weight := _packed(elastic, tensor, settings)) is not None:
                    content = in_c.to_blocks(weight, _order(elastic, tensor))
                else:
                    content = blocks.to_blocks(_in_order(elastic, tensor, settings), tensor.kind)
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
            content = read[at : at + tensor.nbytes]
            at += keys.filled_up(tensor.nbytes)
            if tensor.kind not in blocks.READ:
                if not torch.equal(content, _plain(elastic, name, tensor).reshape(-1).view(torch.uint8)):
                    raise damaged
                continue
            if (weight := _packed(elastic, tensor, settings)) is not None:
                off = in_c.difference(weight, content, _order(elastic, tensor))
            else:
                off = blocks.difference(content, _in_order(elastic, tensor, settings), tensor.kind)
            if off is None:
                raise damaged
            layers, weights, worst = layers + 1, weights + torch.Size(tensor.shape).numel(), max(worst, off)
        return Compared(layers, weights, worst, size)

    def tensor_types(self, elastic: ElasticModel, plan: PrecisionPlan) -> str:
        """Returns a file for `llama-quantize --tensor-type-file`, for those who round the original model
        themselves: a line `^blk\\.0\\.attn_q\\.weight$=q4_1` for each weight."""
        tensors = self._tensors(elastic, plan).items()
        lines = [f"^{re.escape(name)}$={t.kind.lower()}" for name, t in tensors if len(t.shape) == 2]
        return "".join(f"{line}\n" for line in lines)

    def _tensors(self, elastic: ElasticModel, plan: PrecisionPlan) -> dict[str, _Tensor]:
        """What the file holds, by llama.cpp's names, in the order of the model."""
        settings, group = settings_of(elastic, plan), {n: w for n, w in self._weights(elastic)}
        found = {}
        for parameter, value in elastic.base.named_parameters():
            layer, kind = parameter.removesuffix(".weight"), "F32"
            if settings.get(layer, FULL) != FULL:
                _, columns, size = group[layer]
                kind = blocks.kinds(columns, size)[settings[layer]]
            elif value.ndim == 2:
                kind = "BF16" if value.dtype == torch.bfloat16 else "F16"
            found[_name(parameter)] = _Tensor(parameter, kind, tuple(value.shape))
        if (divisors := keys.rope_divisors(elastic.config)) is not None:
            found[ROPE_FREQS] = _Tensor("", "F32", divisors.shape)
        return found

    def _header(self, elastic: ElasticModel, plan: PrecisionPlan, tensors: Mapping[str, _Tensor]) -> bytes:
        config, tokenizer = elastic.config, elastic.tokenizer
        many = [t.kind for t in tensors.values() if len(t.shape) == 2]
        commonest = max(sorted(set(many)), key=many.count)
        ends = tuple(sorted(end_tokens(elastic.base, tokenizer)))
        about = {
            "general.architecture": keys.ARCHITECTURES[config.model_type][0],
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


def _name(parameter: str) -> str | None:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`; None for one that llama.cpp does not
    have."""
    layer, _, leaf = parameter.rpartition(".")
    block = _BLOCK.match(layer)
    name = _NAMES.get(layer[block.end() :] if block else layer)
    return name and f"blk.{block[1]}.{name}.{leaf}" if block else name and f"{name}.{leaf}"


def tensor_names(elastic: ElasticModel) -> dict[str, str]:
    """Returns llama.cpp's name of every parameter: `{blk.3.attn_q.weight: model.layers.3.self_attn...}`."""
    return {_name(parameter): parameter for parameter, _ in elastic.base.named_parameters()}


def row_order(elastic: ElasticModel, parameter: str) -> Tensor | slice:
    """Returns which rows of a parameter follow one another in the file: of q and k each head's halves
    interleaved where the architecture wants that."""
    heads = {".q_proj": elastic.config.num_attention_heads, ".k_proj": elastic.config.num_key_value_heads}
    heads = next((count for part, count in heads.items() if part in parameter), None)
    if heads is None or not keys.ARCHITECTURES[elastic.config.model_type][1]:
        return slice(None)
    return _interleaved(elastic.base.get_parameter(parameter).shape[0], heads)


@lru_cache(maxsize=8)
def _interleaved(rows: int, heads: int) -> Tensor:
    return torch.arange(rows).view(heads, 2, -1).transpose(1, 2).flatten()


def _packed(elastic: ElasticModel, tensor: _Tensor, settings: Mapping[str, Setting]) -> PackedWeight | None:
    """The weight that the view multiplies by, where C lays its codes into blocks of this kind."""
    if tensor.kind not in blocks.SMALL.values():
        return None
    weight = elastic.bank.weight(tensor.layer, settings[tensor.layer])
    return weight if in_c.fits(weight) else None


def _order(elastic: ElasticModel, tensor: _Tensor) -> Tensor | None:
    order = row_order(elastic, tensor.parameter)
    return order if isinstance(order, Tensor) else None


def _in_order(elastic: ElasticModel, tensor: _Tensor, settings: Mapping[str, Setting]) -> Quantized:
    packed, order = elastic.packed(tensor.layer, settings[tensor.layer]), row_order(elastic, tensor.parameter)
    parts = {"codes": packed.codes, "scales": packed.scales, "zeros": packed.zeros}
    return replace(packed, **{name: t if t is None else t.cpu()[order] for name, t in parts.items()})


def _plain(elastic: ElasticModel, name: str, tensor: _Tensor) -> Tensor:
    if name == ROPE_FREQS:
        return torch.from_numpy(keys.rope_divisors(elastic.config))
    value = elastic.base.get_parameter(tensor.parameter).detach().cpu()[row_order(elastic, tensor.parameter)]
    return (value.float() if tensor.kind == "F32" else value).contiguous()
