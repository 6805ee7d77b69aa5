"""Strict at the door: a checkpoint is opened only if every tensor in it is used and every parameter found.

weight_files the safetensors files of a folder or hub id; whoever loads it will say where there are none
stored       {name: type} of all tensors of such files, from their headers
unquantized  refuses codes: weights that another tool has rounded already, and scales beside them
all_used     refuses what a model of transformers left over or made up; `of_timm` the same for one of timm
same_rotary  refuses a file whose rotary frequencies are not those of the config

Each raises ValueError, which names a tensor. A model that ignored one would answer, with other numbers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash, get_checkpoint_shard_files

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# Constants that older versions wrote into their files, which the model computes from its config; how many
# batches a batch norm has seen.
CONSTANT = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|rotary_pos_emb\.inv_freq|position_ids|decoder\.version"
    r"|relative_position_index|attn_mask|num_batches_tracked|(attention|h\.\d+\.attn)\.(masked_)?bias)$"
)
# What others write beside their codes: GPTQ and AWQ, FP8 and compressed-tensors, bitsandbytes, MLX.
BESIDE_CODES = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|biases|(weight|input|k|v)_scale(_inv|_2)?|weight_packed|weight_zero_point"
    r"|(weight\.)?(absmax|quant_map|nested_absmax|quant_state\..*)|SCB|weight_format)$"
)
CODES = re.compile(r"^(F8|F6|F4|I8|U8|I16|U16|I32|U32)")
PLAIN = {"default", "linear"}  # rope types whose frequencies are those of rope_theta, times one factor
IN_CONFIG = ("quantization_config", "quantization", "compression_config")


def weight_files(where: str) -> list[str]:
    """The safetensors files of a folder or hub id; empty where there are none."""
    commit = extract_commit_hash(cached_file(where, CONFIG), None)  # of a hub id: the one that will be loaded
    at = {"revision": commit or "main", "_raise_exceptions_for_missing_entries": False}
    if single := cached_file(where, WEIGHTS, **at):
        return [single]
    index = cached_file(where, INDEX, **at)
    return get_checkpoint_shard_files(where, index, revision=at["revision"])[0] if index else []


def stored(files: Iterable[str]) -> dict[str, str]:
    """`{tensor: its type in safetensors' letters}` of all tensors in these files."""
    found = {}
    for path in files:
        with safe_open(path, "pt") as file:
            found |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return found


def unquantized(config: Mapping[str, Any], tensors: Mapping[str, str]) -> None:
    """Refuse what another tool has quantized, told from the config, the names and the types of tensors."""
    said = next(_said(config), None)
    names = [name for name in tensors if BESIDE_CODES.search(name)]
    codes = [
        f"{n} holds {kind}" for n, kind in tensors.items() if CODES.match(kind) and not CONSTANT.search(n)
    ]
    if said or names or codes:
        raise ValueError(
            f"its weights are already quantized ({said or (names or codes)[0]}): open the original model, "
            "which they were made from"
        )


def _said(config: Mapping[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        if name in IN_CONFIG and value:
            yield f"{name} in its config"
        elif isinstance(value, Mapping):
            yield from _said(value)


def all_used(read: Mapping[str, Any]) -> None:
    """Refuse by what `from_pretrained(..., output_loading_info=True)` tells."""
    _refuse(
        [name for name in read["unexpected_keys"] if not CONSTANT.search(name)],
        read["missing_keys"],
        [name for name, *_ in read["mismatched_keys"]],
    )


def same_rotary(model: nn.Module, files: Iterable[str]) -> None:
    """Refuse rotary frequencies of an older version's file that the config does not give, but for one factor
    in all of them: the model was trained with others. Where the config stretches some more than others the
    file may hold those from before."""
    if not PLAIN.issuperset(_rope_types(model.config.to_dict())):
        return
    held = [buffer.float() for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    for path in files:
        with safe_open(path, "pt") as file:
            for name in filter(re.compile(r"rotary_emb\.inv_freq$").search, file.keys()):
                found = file.get_tensor(name).float()
                fitting = (b for b in held if b.shape == found.shape)
                if held and not any(
                    torch.allclose(found, b * (found[0] / b[0]), 0.02, 1e-6) for b in fitting
                ):
                    raise ValueError(
                        f"its weights do not fit its config: {name} holds other frequencies than the "
                        "config's rope_theta gives"
                    )


def _rope_types(config: Mapping[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _rope_types(value)
        elif name == "rope_type" and value:
            yield value


def of_timm(model: nn.Module, weights: Path) -> None:
    """Refuse unless each tensor of the file is in the model, value by value, under whatever name: timm takes
    some from another place, resizes others and leaves out what it does not know."""
    held = dict(model.state_dict())
    with safe_open(weights, "pt") as file:
        names = [name for name in file.keys() if not CONSTANT.search(name)]  # noqa: SIM118
        rest = {}
        for name in names:
            tensor = file.get_tensor(name)
            if name in held and _same(tensor, held[name]):
                del held[name]
            else:
                rest[name] = tensor
    left = []
    for name, tensor in rest.items():
        home = next((other for other, values in held.items() if _same(tensor, values)), None)
        held.pop(home, None)
        left += [] if home else [name]
    changed = [name for name in left if name in held]
    _refuse(
        set(left) - set(changed), [n for n in held if n not in changed and not CONSTANT.search(n)], changed
    )


def _same(stored: Tensor, held: Tensor) -> bool:
    return stored.shape == held.shape and torch.equal(stored.to(held.dtype), held)


def _refuse(left: Collection[str], missing: Collection[str], changed: Collection[str]) -> None:
    for names, what in (
        (changed, "do not fit its config: {} has another shape or other values in the model it describes"),
        (missing, "are incomplete: {} is not there"),
        (left, "do not fit its config: {} has no place in the model it describes and would be left out"),
    ):
        if names:
            others = f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""
            raise ValueError(f"its weights {what.format(min(names) + others)}")
