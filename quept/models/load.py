"""Load a model for elastic quantization: a zoo name, a Hugging Face hub id, a local folder or a GGUF file. It
is a causal language model or a vision-language model of transformers, or a classifier of pictures from timm
(see vision).

The weights stay in 16 bits, as they are on disk (they are the *source* that every width is made from);
nothing is quantized here. Only safetensors are read, never pickled weights, and no code that comes with a
model is run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from quept import zoo
from quept.brief import brief
from quept.checked import quotable
from quept.mapped import passing

from . import complete, vision
from .families import FAMILIES
from .folder import gguf_in, instead
from .identity import deciding, fingerprint_of, identity_of
from .layout import ModelLayout, family_of, layout_of
from .recognize import recognize
from .unfused import unfuse
from .vision import Vision

QUESTIONS = "questions.safetensors"
LATE = "HF_DEACTIVATE_ASYNC_LOAD"  # a setting of transformers


class LoadError(RuntimeError):
    """A model that cannot be loaded; the message says why and what to type instead."""


@dataclass(frozen=True)
class LoadedModel:
    """A full-precision model and what is known of it. `source` is what was asked for, so that it can be
    loaded again; `group` the columns that share a scale unless somebody asks otherwise.

    tokenizer: of all but a classifier of pictures, which has `vision` in its place. processor: of a
    vision-language model, what makes its inputs of pictures and words. questions: those with answers that lie
    beside its weights (see `quept.data.questions`), if any do. Whatever a model lacks is None.
    fingerprint: a hash of every parameter, which an artifact is bound to. identity: a hash of that and of all
    else that decides what the model computes, which numbers belong to; config: that part of its config, flat
    (see `identity` for both).
    record: how the weights were transformed since they were loaded (a `quept.transforms.Record`), or None;
    source, fingerprint, identity, config and provenance stay those of what was loaded. online: the layers
    whose input must pass through `quept.numerics.hadamard.hadamard_transform` as the model runs. `model` does
    so by itself; whoever puts a layer of their own in such a place has to."""

    model: PreTrainedModel | nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    layout: ModelLayout
    source: str
    title: str
    fingerprint: str
    provenance: str
    group: int | str = "auto"
    record: object | None = None
    online: frozenset[str] = frozenset()
    vision: Vision | None = None
    processor: ProcessorMixin | None = None
    questions: Path | None = None
    config: Mapping[str, Any] | None = None
    identity: str = ""

    def __post_init__(self):
        if self.config is None:
            config = deciding(self.model, self.vision and self.vision.config)
            identity = identity_of(self.model, self.fingerprint, config, self.tokenizer)
            object.__setattr__(self, "config", config)
            object.__setattr__(self, "identity", identity)

    @property
    def kind(self) -> str:
        """ "language", "vision" or "vision-language"."""
        return self.layout.kind

    @property
    def embeddings(self) -> tuple[str, ...]:
        """The modules whose weights are the model's embeddings: where tokens are looked up or patches
        embedded and, unless it shares that weight or there is none, the head."""
        weights: dict[int, str] = {}
        for name in self.layout.ends:
            weight = getattr(self.model.get_submodule(name), "weight", None)
            if weight is not None:
                weights.setdefault(id(weight), name)
        return tuple(weights.values())


def load(source: str | Path, progress: Callable[[str, float | None], None] | None = None) -> LoadedModel:
    """Load `source`: a zoo name (`smollm2-135m`), a folder, a GGUF file, or a hub id (`org/name`).

    Raises LoadError for what cannot be found or is no supported model."""
    source = str(source)
    report = progress or (lambda stage, fraction: None)
    entry = zoo.MODELS.get(source)
    title, provenance = Path(source).name, f"loaded from {source}"
    if entry:
        where, title, provenance = str(zoo.model_folder(source, report)), entry.title, entry.provenance
    elif os.path.exists(source):
        path = Path(source).resolve()
        if problem := instead(path):
            raise LoadError(brief(f"cannot load {source!r}: it {problem}"))
        where, title, provenance = source, path.name, f"loaded from {Path(source).name}"
    elif source.count("/") == 1 and not source.startswith((".", "/", "~")):
        where = source
    else:
        names = ", ".join(zoo.MODELS)
        raise LoadError(
            f"no model {brief(repr(source))}: give a built-in name ({names}), a folder, a GGUF file, "
            "or a hub id like org/name"
        )
    report("reading the weights", None)
    try:
        if not entry and (file := gguf_in(Path(where))):
            where, title, provenance = zoo.gguf_folder(file.resolve(), report)
        config = vision.config_of(where)
        if config.get("model_type") not in (None, *CONFIG_MAPPING):
            family_of(str(config["model_type"]))  # transformers would answer with how to update it
        if vision.is_from_timm(config):
            model, pictures = vision.read(where, config, wide=not (entry and entry.folded_in_16_bits))
            tokenizer = processor = None
            layout = layout_of(model)
        else:
            pictures, (model, tokenizer, processor, family) = None, _of_transformers(where)
            layout = layout_of(model, family)
    except Exception as error:  # a damaged folder makes transformers raise nearly anything
        raise LoadError(brief(f"cannot load {source!r}: {quotable(error)}")) from error
    model.eval().requires_grad_(False)
    questions = Path(where) / QUESTIONS
    report("checking the weights", None)
    return LoadedModel(
        model,
        tokenizer,
        layout,
        source,
        title,
        fingerprint_of(model),
        provenance,
        entry.group if entry else "auto",
        vision=pictures,
        processor=processor,
        questions=questions if processor and questions.is_file() else None,
    )


def _of_transformers(
    where: str,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin | None, str]:
    """A language model, taken apart, and its tokenizer, or a vision-language model and its processor too,
    from a folder or hub id; and the name of its family."""
    config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    name = recognize(config)
    family = FAMILIES[name]
    files = complete.weight_files(where)
    types = complete.stored(files)
    complete.unquantized(config.to_dict(), types)
    joined = bool(family.experts)  # matrices of experts into one tensor
    if family.kind == "vision-language":
        auto, processor = (
            AutoModelForImageTextToText,
            AutoProcessor.from_pretrained(where, trust_remote_code=False),
        )
        if not isinstance(processor, ProcessorMixin):
            raise ValueError(
                "it says nowhere how pictures are prepared (preprocessor_config.json is missing)"
            )
        processor.chat_template = processor.chat_template or family.template or None
        tokenizer = processor.tokenizer
    else:
        auto, processor = AutoModelForCausalLM, None
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    if not isinstance(tokenizer.model_max_length, int | float):
        raise ValueError("its tokenizer_config.json says a model_max_length that is no number")
    with passing(files, joined), _one_by_one() if joined else nullcontext():
        model, read = auto.from_pretrained(
            where,
            dtype=_storage(config),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # as every other mismatch, by `all_used`
        )
        complete.all_used(read)  # transformers would go on with random numbers, or without a bias
        complete.same_rotary(model, files)
        unfuse(model, family)
    return model, tokenizer, processor, name


@contextmanager
def _one_by_one() -> Iterator[None]:
    """Has transformers convert the parts of a parameter when it joins them, as it does where memory is short;
    else it converts those of all experts of all blocks first, and holds them twice."""
    before = os.environ.get(LATE)
    os.environ[LATE] = "1"
    try:
        yield
    finally:
        os.environ.pop(LATE) if before is None else os.environ.update({LATE: before})


def _storage(config) -> torch.dtype:
    """Keep 16-bit weights as they are; hold wider ones as float16, which keeps three more digits than
    bfloat16."""
    dtype = getattr(config, "dtype", None)
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float16
