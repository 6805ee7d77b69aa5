"""Load a model for elastic quantisation: a zoo name, a Hugging Face hub id, or a local folder.

The weights stay in 16 bits, as they are on disk (they are the *source* that every width is made from);
nothing is quantised here. The fingerprint, a hash of every parameter, is what an artifact is bound to. Only
safetensors are read, never pickled weights, and no code that comes with a model is run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from quept import zoo

from .anatomy import Anatomy, anatomy_of, family_of


class LoadError(RuntimeError):
    """A model that cannot be loaded; the message says why and what to type instead."""


@dataclass(frozen=True)
class LoadedModel:
    """A full-precision model and what is known of it. `source` is what was asked for, so that it can be
    loaded again; `group` the columns that share a scale unless somebody asks otherwise.

    record: how the weights were transformed since they were loaded (a `quept.transforms.Record`), or None;
    source, fingerprint and provenance stay those of what was loaded. online: the layers whose input must
    pass through `quept.numerics.hadamard.hadamard_transform` as the model runs. `model` does so by itself;
    whoever puts a layer of their own in such a place has to."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    source: str
    title: str
    fingerprint: str
    provenance: str
    group: int | str = "auto"
    record: object | None = None
    online: frozenset[str] = frozenset()

    @property
    def embeddings(self) -> tuple[str, ...]:
        """The modules whose weights are the model's embeddings: where tokens are looked up and, unless it
        shares that weight, the output head."""
        embed, head = (self.model.get_submodule(n) for n in (self.anatomy.embed, self.anatomy.head))
        tied = head.weight is embed.weight
        return (self.anatomy.embed,) if tied else (self.anatomy.embed, self.anatomy.head)


def load(source: str | Path, progress: Callable[[str, float | None], None] | None = None) -> LoadedModel:
    """Load `source`: a zoo name (`smollm2-135m`), a folder, or a hub id (`org/name`).

    Raises LoadError for what cannot be found or is no supported causal language model."""
    source = str(source)
    report = progress or (lambda stage, fraction: None)
    entry = zoo.MODELS.get(source)
    if entry:
        where = str(zoo.model_folder(source, report))
    elif os.path.isdir(source) or source.count("/") == 1 and not source.startswith((".", "/")):
        where = source
    else:
        names = ", ".join(zoo.MODELS)
        raise LoadError(
            f"no model {source!r}: give a built-in name ({names}), a folder, or a hub id like org/name"
        )
    report("reading the weights", None)
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        family_of(config.model_type)
        if getattr(config, "quantization_config", None):
            raise ValueError("its weights are already quantised; give the model it was made from")
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        model, read = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=_storage(config),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if read["missing_keys"]:  # transformers would go on with random numbers in their place
            first = min(read["missing_keys"])
            raise ValueError(f"its weights are incomplete: {first} is not there")
        anatomy = anatomy_of(model)
    except Exception as error:  # a damaged folder makes transformers raise nearly anything
        raise LoadError(f"cannot load {source!r}: {error or type(error).__name__}") from error
    model.eval().requires_grad_(False)
    title = entry.title if entry else Path(source).resolve().name
    provenance = (
        entry.provenance if entry else f"loaded from {Path(source).name if os.path.isdir(source) else source}"
    )
    report("checking the weights", None)
    return LoadedModel(
        model,
        tokenizer,
        anatomy,
        source,
        title,
        fingerprint_of(model),
        provenance,
        entry.group if entry else "auto",
    )


def _storage(config) -> torch.dtype:
    """Keep 16-bit weights as they are; hold wider ones as float16, which keeps three more digits than
    bfloat16."""
    dtype = getattr(config, "dtype", None)
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float16


def fingerprint_of(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of all parameters, as 64 hex digits. Tied parameters count
    once."""
    parameters = sorted(model.named_parameters())

    def digest(item: tuple[str, torch.Tensor]) -> bytes:
        name, tensor = item
        head = hashlib.sha256(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        head.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return head.digest()

    with ThreadPoolExecutor() as pool:
        return hashlib.sha256(b"".join(pool.map(digest, parameters))).hexdigest()
