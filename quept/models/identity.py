"""Who a model is, in two hashes.

fingerprint_of   every parameter: what an artifact is bound to
identity_of      that and whatever else decides what the model computes (its config, the buffers that its file
                 holds, the tokenizer that cuts texts): what every measured or cached number belongs to

Two folders with the same tensors and another `rope_theta` have one fingerprint and two identities.
`deciding(model, settings)` is the config as a flat dictionary, {"rope_parameters.rope_theta": 10000.0, ...},
without what only describes the model, so that two of them can be compared and told apart by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

# Entries of a config, at whatever depth, that say where a model is from or how it is stored or talked to.
DESCRIPTIVE = (
    *("_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype"),
    *("use_cache", "output_attentions", "output_hidden_states", "return_dict", "initializer_range"),
    *("init_std", "id2label", "label2id", "label_names", "label_descriptions", "problem_type"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id"),
    *("url", "hf_hub_id", "source", "license", "tag", "origin_url", "paper_name", "paper_ids", "notes"),
)


def fingerprint_of(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of all parameters, as 64 hex digits. Tied parameters count
    once; those in 32 bits (which batch norm was folded into) count as rounded to 16, as artifacts have them
    that were made when they were."""
    held = [
        (name, p.half() if p.dtype == torch.float32 else p) for name, p in sorted(model.named_parameters())
    ]
    with ThreadPoolExecutor() as pool:
        return hashlib.sha256(b"".join(pool.map(_digest, held))).hexdigest()


def identity_of(
    model: nn.Module,
    fingerprint: str,
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
) -> str:
    """64 hex digits over the fingerprint, `deciding` of the config, parameters in 32 bits, buffers and
    tokenizer."""
    stored = model.state_dict().keys()  # the others follow from the config
    buffers = [_digest(item) for item in sorted(model.named_buffers()) if item[0] in stored]
    wide = [_digest(item) for item in sorted(model.named_parameters()) if item[1].dtype == torch.float32]
    parts = [fingerprint.encode(), json.dumps(config, sort_keys=True).encode(), *wide, *buffers]
    return hashlib.sha256(b"\n".join([*parts, _words(tokenizer).encode()])).hexdigest()


def deciding(model: nn.Module, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What of a config decides the model's function: of transformers' own, or of `settings` (a classifier's
    config.json)."""
    config = getattr(model, "config", None)
    if settings is None:
        settings = config.to_dict() if hasattr(config, "to_dict") else {}
    return dict(_flat(json.loads(json.dumps(settings, default=str))))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in sorted(settings.items()):
        if name in DESCRIPTIVE:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _digest(item: tuple[str, Tensor]) -> bytes:
    name, tensor = item
    head = hashlib.sha256(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    head.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return head.digest()


def _words(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """All that a tokenizer does to a text."""
    if tokenizer is None:
        return ""
    core = getattr(tokenizer, "backend_tokenizer", None)
    how = core.to_str() if core is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return f"{how}\n{tokenizer.chat_template}\n{tokenizer.all_special_tokens}"
