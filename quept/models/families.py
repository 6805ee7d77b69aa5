"""Architectures as a table: a new family is a new entry here, and no loop elsewhere knows its name.

Paths are relative to the model (blocks, between, embed, final_norm, head, more_heads) or to one block (roles,
norms). In the first two a `*` stands for any one part of a name: stages and blocks are found, not counted.
Roles carry the same short names in every family, in the order in which data flows; vision transformers read
query, key and value out of one layer, `qkv`. `norms` maps each norm of a block to the roles that read its
output. `between` holds the modules that lie between blocks and have a linear layer of their own, such as the
merging of patches where a stage of Swin begins: `{where: {role: path}}`, each counted as a block.

A vision-language model has three sections. Its language blocks are what the fields above speak of; `vision`
and `projector` say, in the form of `between`, where the blocks of its vision tower and what leads from there
into the language model are.
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
    configs or, of a model from timm, the name of its class. kind: "language", "vision" or "vision-language";
    of the last `language` is the module that reads embeddings of words and pictures alike."""

    model_types: tuple[str, ...]
    blocks: str = "model.layers.*"
    roles: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(_LLAMA_ROLES))
    norms: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType(_LLAMA_NORMS))
    embed: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    more_heads: tuple[str, ...] = ()
    between: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    kind: str = "language"
    language: str = ""
    vision: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    projector: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


_VIT = {
    "blocks": "blocks.*",
    "roles": {"qkv": "attn.qkv", "o": "attn.proj", "up": "mlp.fc1", "down": "mlp.fc2"},
    "norms": {"norm1": ("qkv",), "norm2": ("up",), "norm": ("merge",)},
    "embed": "patch_embed.proj",
    "final_norm": "norm",
    "head": "head",
    "kind": "vision",
}

_CLIP_ROLES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
_TWO_LAYERS = {"model.multi_modal_projector": {"in": "linear_1", "out": "linear_2"}}
_MERGER = {"model.visual.merger": {"in": "mlp.0", "out": "mlp.2"}}
_QWEN_ATTENTION = {"qkv": "attn.qkv", "o": "attn.proj"}


def _with_vision(
    model_types: tuple[str, ...],
    vision: Mapping[str, Mapping[str, str]],
    projector: Mapping[str, Mapping[str, str]],
    language: str = "model.language_model",
) -> Family:
    """A vision-language family: its language model is wired as a Llama."""
    return Family(
        model_types,
        blocks=f"{language}.layers.*",
        embed=f"{language}.embed_tokens",
        final_norm=f"{language}.norm",
        kind="vision-language",
        language=language,
        vision=vision,
        projector=projector,
    )


FAMILIES = {
    "llama": Family(("llama",)),
    "mistral": Family(("mistral",)),
    "qwen2": Family(("qwen2",)),
    "qwen3": Family(("qwen3",)),
    "opt": Family(
        ("opt",),
        blocks="model.decoder.layers.*",
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
    "vit": Family(("VisionTransformer",), **_VIT),
    "deit-distilled": Family(("VisionTransformerDistilled",), **_VIT, more_heads=("head_dist",)),
    "swin": Family(
        ("SwinTransformer",),
        **_VIT
        | {
            "blocks": "layers.*.blocks.*",
            "between": {"layers.*.downsample": {"merge": "reduction"}},
            "head": "head.fc",
        },
    ),
    "llava": _with_vision(
        ("llava", "llava_onevision"),
        {"model.vision_tower.encoder.layers.*": _CLIP_ROLES},
        _TWO_LAYERS,
    ),
    "qwen2-vl": _with_vision(
        ("qwen2_vl",),
        {"model.visual.blocks.*": _QWEN_ATTENTION | {"up": "mlp.fc1", "down": "mlp.fc2"}},
        _MERGER,
    ),
    "qwen2.5-vl": _with_vision(
        ("qwen2_5_vl",),
        {
            "model.visual.blocks.*": _QWEN_ATTENTION
            | {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
        },
        _MERGER,
    ),
    "internvl": _with_vision(
        ("internvl",),
        {
            "model.vision_tower.encoder.layer.*": {
                "q": "attention.q_proj",
                "k": "attention.k_proj",
                "v": "attention.v_proj",
                "o": "attention.projection_layer",
                "up": "mlp.fc1",
                "down": "mlp.fc2",
            }
        },
        _TWO_LAYERS,
    ),
    "idefics3": _with_vision(
        ("idefics3", "smolvlm"),
        {"model.vision_model.encoder.layers.*": _CLIP_ROLES},
        {"model.connector": {"in": "modality_projection.proj"}},
        language="model.text_model",
    ),
}
