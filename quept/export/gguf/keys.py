"""What a GGUF file says of a model before its tensors come: the config in llama.cpp's words, and the bytes of
it. `quept.zoo.gguf_llama` reads the same words."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from quept.zoo.gguf_llama import llama3_divisors

ARCHITECTURES = {  # model_type -> llama.cpp's name, and whether it wants the rows of q and k interleaved
    "llama": ("llama", True),
    "mistral": ("llama", True),  # differs by its window alone
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
}
ALIGNMENT = 32
_YARN = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}


def problem(config: PretrainedConfig) -> str | None:
    """Returns why llama.cpp could not run a model of this config, as a sentence; None if it can."""
    if config.model_type not in ARCHITECTURES:
        return f"models of type {config.model_type} are not written"
    if config.hidden_act != "silu":
        return f"its blocks compute {config.hidden_act} where llama.cpp computes silu"
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "yarn", "llama3") or (kind == "yarn" and set(rope) > _YARN):
        return f"its rotary frequencies are scaled in a way that is not written ({kind})"
    if rope.get("partial_rotary_factor", 1) != 1:
        return "it rotates a part of each head"
    return None


def config_keys(config: PretrainedConfig) -> dict[str, Any]:
    """Returns the metadata of a config that has no `problem`."""
    name = ARCHITECTURES[config.model_type][0]
    heads, rope, size = config.num_attention_heads, config.rope_parameters, head_dim(config)
    windows = [config.max_position_embeddings, getattr(config, "sliding_window", None)]
    found = {
        "context_length": min(window for window in windows if window),  # beyond it llama.cpp has no window
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": size,
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config.vocab_size,
    }
    if rope.get("rope_type") in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
        if original := rope.get("original_max_position_embeddings"):
            found["rope.scaling.original_context_length"] = original
    return {f"{name}.{key}": value for key, value in found.items()}


def rope_divisors(config: PretrainedConfig) -> np.ndarray | None:
    """Returns what each rotary frequency is divided by (head_dim / 2,), where that is Llama 3.1's way."""
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    return llama3_divisors(rope["rope_theta"], head_dim(config), rope).astype(np.float32)


def head_dim(config: PretrainedConfig) -> int:
    """Returns the channels of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def header(
    keys: Mapping[str, Any],
    more: tuple[int, bytes],
    tensors: Mapping[str, tuple[int, tuple[int, ...], int]],
) -> bytes:
    """Returns how the file begins, up to where the first tensor lies. more: further metadata, how many and
    `packed`; tensors: `{name: (number of its type, shape, bytes)}`, in the order of the file, each filled up
    to ALIGNMENT."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys) + more[0]), packed(keys), more[1]]
    offset = 0
    for name, (kind, shape, nbytes) in tensors.items():
        parts += [_text(name), struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))]
        parts.append(struct.pack("<IQ", kind, offset))
        offset += filled_up(nbytes)
    found = b"".join(parts)
    return found.ljust(filled_up(len(found)), b"\0")


def packed(keys: Mapping[str, Any]) -> bytes:
    """Returns metadata as they stand in the file."""
    return b"".join(_text(key) + _value(value) for key, value in keys.items())


def filled_up(nbytes: int) -> int:
    """Returns the bytes that something takes in the file, up to where the next may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Any) -> bytes:
    """Type and content: of a list the type of what is in it, too."""
    if isinstance(value, list):
        kind, pack = _TYPES[type(value[0]), True] if value else _TYPES[str, False]
        return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(map(pack, value))
    kind, pack = _TYPES[type(value), False]
    return struct.pack("<I", kind) + pack(value)


_TYPES = {  # (type, whether in a list) -> number of the type, and how it is packed
    (bool, False): (7, struct.Struct("<?").pack),
    (int, False): (4, struct.Struct("<I").pack),
    (int, True): (5, struct.Struct("<i").pack),
    (float, False): (6, struct.Struct("<f").pack),
    (float, True): (6, struct.Struct("<f").pack),
    (str, False): (8, _text),
    (str, True): (8, _text),
}
