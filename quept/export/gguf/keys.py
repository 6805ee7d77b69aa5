"""What a GGUF file says of a model before its tensors come: the config in llama.cpp's words, and the bytes of
it. `quept.zoo.gguf_llama` reads the same words, by the same table of architectures."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from quept.models.unfused import head_size, key_heads
from quept.zoo.gguf_architectures import written_as
from quept.zoo.gguf_llama import llama3_divisors

ALIGNMENT = 32
_YARN = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}


def problem(config: PretrainedConfig) -> str | None:
    """Returns why llama.cpp could not run a model of this config, as a sentence; None if it can."""
    architecture = written_as(config.model_type)
    if architecture is None:
        return f"models of type {config.model_type} are not written"
    entry, activation = architecture.activation
    if getattr(config, entry) != activation:
        return f"its blocks compute {getattr(config, entry)} where llama.cpp computes {activation}"
    for entry, value in architecture.computed.items():
        if (found := getattr(config, entry, value(config))) != value(config):
            return f"its {entry} is {found} where llama.cpp takes {value(config)}"
    lacking = (entry for entry in architecture.keys.values() if getattr(config, entry, None) is None)
    if absent := next((entry for entry in lacking if entry != "sliding_window"), None):
        return f"llama.cpp takes it to have {absent}, which it has not"
    rope, within = _ropes(config)
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "yarn", "llama3") or (kind == "yarn" and set(rope) > _YARN):
        return f"its rotary frequencies are scaled in a way that is not written ({kind})"
    if within.get("rope_type", "default") not in ("default", kind):
        return f"its rotary frequencies are scaled within windows ({within['rope_type']})"
    if rope.get("partial_rotary_factor", 1) != 1 and not architecture.partial:
        return "it rotates a part of each head"
    return None


def config_keys(config: PretrainedConfig) -> dict[str, Any]:
    """Returns the metadata of a config that has no `problem`."""
    architecture, size, (rope, within) = written_as(config.model_type), head_size(config), _ropes(config)
    window = None if architecture.windows else getattr(config, "sliding_window", None)
    rotated = int(size * rope.get("partial_rotary_factor", 1))
    found = {
        "context_length": min(config.max_position_embeddings, window or config.max_position_embeddings),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": key_heads(config),
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": rotated,
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config.vocab_size,
    }
    if rope.get("rope_type") in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
        if original := rope.get("original_max_position_embeddings"):
            found["rope.scaling.original_context_length"] = original
    if within is not rope:
        found["rope.freq_base_swa"] = float(within["rope_theta"])
    more = {key: getattr(config, entry, None) for key, entry in architecture.keys.items()}
    found |= {key: value for key, value in more.items() if value is not None}
    return {f"{architecture.name}.{key}": value for key, value in found.items()}


def _ropes(config: PretrainedConfig) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The parameters of rotary positions where a layer sees all, and within a window."""
    rope = config.rope_parameters
    return (rope["full_attention"], rope["sliding_attention"]) if "full_attention" in rope else (rope, rope)


def rope_divisors(config: PretrainedConfig) -> np.ndarray | None:
    """Returns what each rotary frequency is divided by (head_dim / 2,), where that is Llama 3.1's way."""
    rope, _ = _ropes(config)
    if rope.get("rope_type") != "llama3":
        return None
    return llama3_divisors(rope["rope_theta"], head_size(config), rope).astype(np.float32)


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
