"""Architectures as a table: a new family is a new entry here, and no loop elsewhere knows its name.

Paths are relative to the model (blocks, embed, head, final_norm) or to one block (roles, norms). Roles carry
the same short names in every family, in the order in which data flows. `norms` maps each norm of a block to
the roles that read its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_LLAMA_ROLES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_LLAMA_NORMS = {"input_layernorm": ("q", "k", "v"), "post_attention_layernorm": ("gate", "up")}


@dataclass(frozen=True)
class Family:
    """Where the parts of one architecture are. `model_types` are the `model_type` values of its Hugging Face
    configs."""

    model_types: tuple[str, ...]
    blocks: str = "model.layers"
    roles: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(_LLAMA_ROLES))
    norms: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType(_LLAMA_NORMS))
    embed: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"


FAMILIES = {
    "llama": Family(("llama",)),
    "mistral": Family(("mistral",)),
    "qwen2": Family(("qwen2",)),
    "qwen3": Family(("qwen3",)),
    "opt": Family(
        ("opt",),
        blocks="model.decoder.layers",
        roles={
            "q": "self_attn.q_proj",
            "k": "self_attn.k_proj",
            "v": "self_attn.v_proj",
            "o": "self_attn.out_proj",
            "up": "fc1",
            "down": "fc2",
        },
        norms={"self_attn_layer_norm": ("q", "k", "v"), "final_layer_norm": ("up",)},
        embed="model.decoder.embed_tokens",
        final_norm="model.decoder.final_layer_norm",
    ),
}
