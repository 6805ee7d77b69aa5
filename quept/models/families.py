"""Architectures as a table: a new family is a new entry here, and no loop elsewhere knows its name.

A model whose type is in no entry is taken for the first language family whose paths are all its layers and
whose norms stand where its own do (see `recognize`): most that are wired like a Llama, a Gemma or an OLMo
need none.

Paths are relative to the model (blocks, between, embed, final_norm, head, more_heads) or to one block (all
others). In the first two a `*` stands for any one part of a name: stages and blocks are found, not counted.
Roles carry the same short names in every family, in the order in which data flows; vision transformers read
query, key and value out of one layer, `qkv`. `norms` maps each norm of a block to the roles that read its
output, `after` each norm that stands behind a layer to the role whose output it reads; whether a norm
multiplies by w or by 1 + w is asked of the norm itself.

`fused` names the layers of a block that hold several matrices, each with its parts in the order of the rows;
every part is a layer of its own from the moment a model is opened (see `unfused`). So is every expert of a
mixture, which a role has at the `*` in its path: `experts` is the module that holds them as 3-D parameters,
`router` the one that chooses among them, `dense` the roles of a block that has no experts,
`kept` other linear layers of a block that stay at 16 bits.

`between` holds the modules that lie between blocks and have a linear layer of their own, such as the merging
of patches where a stage of Swin begins: `{where: {role: path}}`, each counted as a block.

Of a convolutional classifier a plan speaks of the convolutions of 1 x 1 and the head, which are linear layers
over channels. A block is a stage, or such a layer by itself (the path ""); where a path has a `*`, each layer
found there that is one has a role of its own, with its number in the stage. All other convolutions stand with
the embedding.

A vision-language model has three sections. Its language blocks are what the fields above speak of; `vision`
and `projector` say, in the form of `between`, where the blocks of its vision tower and what leads from there
into the language model are (nothing where that is no linear layer). `template` is the chat template of a
family whose processors come without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

KINDS = {  # of a family's models, and what each does in the middle of a sentence
    "language": "is a language model",
    "vision": "classifies pictures",
    "vision-language": "is a vision-language model",
}
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
_GEMMA_NORMS = {"input_layernorm": ("q", "k", "v"), "pre_feedforward_layernorm": ("gate", "up")}


@dataclass(frozen=True)
class Family:
    """Where the parts of one architecture are. `model_types` are the `model_type` values of its Hugging Face
    configs or, of a model from timm, the name of its class. kind: of KINDS; of a vision-language model
    `language` is the module that reads embeddings of words and pictures alike. convolutional: see the
    module's docstring."""

    model_types: tuple[str, ...]
    blocks: str = "model.layers.*"
    roles: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(_LLAMA_ROLES))
    norms: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType(_LLAMA_NORMS))
    embed: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    more_heads: tuple[str, ...] = ()
    between: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    after: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    experts: str = ""
    router: str = ""
    dense: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    kind: str = "language"
    convolutional: bool = False
    language: str = ""
    vision: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    projector: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    template: str = ""


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
_TOWER = "model.vision_tower.encoder.layers.*"
_ONE_LAYER = {"model.multi_modal_projector": {"in": "linear"}}
_TWO_LAYERS = {"model.multi_modal_projector": {"in": "linear_1", "out": "linear_2"}}
_MERGER = {"model.visual.merger": {"in": "mlp.0", "out": "mlp.2"}}
_QWEN_ATTENTION = {"qkv": "attn.qkv", "o": "attn.proj"}
_QWEN3_TOWER = {"model.visual.blocks.*": _QWEN_ATTENTION | {"up": "mlp.linear_fc1", "down": "mlp.linear_fc2"}}
_QWEN3_MERGERS = dict.fromkeys(
    ("model.visual.merger", "model.visual.deepstack_merger_list.*"),
    {"in": "linear_fc1", "out": "linear_fc2"},
)
_PREFIX = (  # pictures and words before an answer, as PaliGemma's processor writes them
    "{% for m in messages %}{% if m['content'] is string %}{% set words = m['content'] %}{% else %}"
    "{% set words = m['content'] | selectattr('type', 'eq', 'text') | map(attribute='text') | join %}"
    "{% for part in m['content'] if part['type'] == 'image' %}<image>{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ words + eos_token }}"
    "{% else %}{{ bos_token + words + '\\n' }}{% endif %}{% endfor %}"
)


def _with_vision(
    model_types: tuple[str, ...],
    vision: Mapping[str, Mapping[str, str]],
    projector: Mapping[str, Mapping[str, str]],
    language: str = "model.language_model",
    **others,
) -> Family:
    """A vision-language family: its language model is wired as a Llama, but for `others`."""
    return Family(
        model_types,
        blocks=f"{language}.layers.*",
        embed=f"{language}.embed_tokens",
        final_norm=f"{language}.norm",
        kind="vision-language",
        language=language,
        vision=vision,
        projector=projector,
        **others,
    )


_GATE_UP = {"mlp.gate_up_proj": ("gate_proj", "up_proj")}
_GATE_UP_ROLES = _LLAMA_ROLES | {"gate": "mlp.gate_up_proj.gate_proj", "up": "mlp.gate_up_proj.up_proj"}
_QKV_ROLES = {role: f"self_attn.qkv_proj.{role}_proj" for role in ("q", "k", "v")}
_ATTENTION = {role: _LLAMA_ROLES[role] for role in ("q", "k", "v", "o")}
_EXPERT_ROLES = _LLAMA_ROLES | {role: f"mlp.experts.*.{role}_proj" for role in ("gate", "up", "down")}
_EXPERTS = {"roles": _EXPERT_ROLES, "experts": "mlp.experts"}
_NORMS_BEHIND = {"post_attention_layernorm": "o", "post_feedforward_layernorm": "down"}
_GPT = {"blocks": "transformer.h.*", "embed": "transformer.wte", "final_norm": "transformer.ln_f"}
_GPT_NORMS = {"ln_1": ("qkv",), "ln_2": ("up",)}
_C_ROLES = {"qkv": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
_NEOX_MLP = {"up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"}
_BLOOM = _GPT | {
    "roles": {"qkv": "self_attention.query_key_value", "o": "self_attention.dense"} | _NEOX_MLP,
    "embed": "transformer.word_embeddings",
}
_OPT_ROLES = _ATTENTION | {"o": "self_attn.out_proj", "up": "fc1", "down": "fc2"}
_OPT_NORMS = {"self_attn_layer_norm": ("q", "k", "v"), "final_layer_norm": ("up",)}


def _shared(path: str) -> dict[str, str]:
    """The roles of the expert that reads every token."""
    return {f"shared-{role}": f"{path}.{role}_proj" for role in ("gate", "up", "down")}


FAMILIES = {
    "llama": Family(("llama",)),
    "mistral": Family(("mistral",)),
    "qwen2": Family(("qwen2",)),
    "qwen3": Family(("qwen3",)),
    "opt": Family(
        ("opt",),
        blocks="model.decoder.layers.*",
        roles=_OPT_ROLES,
        norms=_OPT_NORMS,
        embed="model.decoder.embed_tokens",
        final_norm="model.decoder.final_layer_norm",
    ),
    "gemma2": Family(("gemma2", "gemma3_text"), norms=_GEMMA_NORMS, after=_NORMS_BEHIND),
    "vaultgemma": Family(("vaultgemma",), norms=_GEMMA_NORMS),
    "phi3": Family(
        ("phi3",),
        roles=_GATE_UP_ROLES | _QKV_ROLES,
        fused=_GATE_UP | {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj")},
    ),
    "olmo2": Family(("olmo2", "olmo3"), norms={}, after=_NORMS_BEHIND),
    "glm": Family(("glm",), roles=_GATE_UP_ROLES, fused=_GATE_UP),
    "glm4": Family(
        ("glm4",),
        roles=_GATE_UP_ROLES,
        fused=_GATE_UP,
        after={"post_self_attn_layernorm": "o", "post_mlp_layernorm": "down"},
    ),
    "smollm3": Family(("smollm3",)),
    "granite": Family(("granite",)),
    "cohere": Family(("cohere", "cohere2"), norms={"input_layernorm": ("q", "k", "v", "gate", "up")}),
    "arcee": Family(
        ("arcee", "nemotron"),
        roles=_ATTENTION | {"up": "mlp.up_proj", "down": "mlp.down_proj"},
        norms={"input_layernorm": ("q", "k", "v"), "post_attention_layernorm": ("up",)},
    ),
    "starcoder2": Family(
        ("starcoder2",),
        roles=_ATTENTION | {"up": "mlp.c_fc", "down": "mlp.c_proj"},
        norms={"input_layernorm": ("q", "k", "v"), "post_attention_layernorm": ("up",)},
    ),
    "phi": Family(
        ("phi",),
        roles=_ATTENTION | {"o": "self_attn.dense", "up": "mlp.fc1", "down": "mlp.fc2"},
        norms={"input_layernorm": ("q", "k", "v", "up")},
        final_norm="model.final_layernorm",
    ),
    "gpt-neox": Family(
        ("gpt_neox",),
        blocks="gpt_neox.layers.*",
        roles={"qkv": "attention.query_key_value", "o": "attention.dense"} | _NEOX_MLP,
        norms={"input_layernorm": ("qkv",), "post_attention_layernorm": ("up",)},
        embed="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
    ),
    "gpt2": Family(("gpt2",), **_GPT, roles=_C_ROLES, norms=_GPT_NORMS),
    "gpt-bigcode": Family(("gpt_bigcode",), **_GPT, roles=_C_ROLES, norms=_GPT_NORMS),
    "gpt-neo": Family(
        ("gpt_neo",),
        **_GPT,
        roles={role: f"attn.attention.{role}_proj" for role in ("q", "k", "v")}
        | {"o": "attn.attention.out_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
        norms={"ln_1": ("q", "k", "v"), "ln_2": ("up",)},
    ),
    "gptj": Family(
        ("gptj",),
        **_GPT,
        roles={role: f"attn.{role}_proj" for role in ("q", "k", "v")}
        | {"o": "attn.out_proj", "up": "mlp.fc_in", "down": "mlp.fc_out"},
        norms={"ln_1": ("q", "k", "v", "up")},
    ),
    "codegen": Family(
        ("codegen",),
        **_GPT,
        roles={"qkv": "attn.qkv_proj", "o": "attn.out_proj", "up": "mlp.fc_in", "down": "mlp.fc_out"},
        norms={"ln_1": ("qkv", "up")},
    ),
    "bloom": Family(
        ("bloom",), **_BLOOM, norms={"input_layernorm": ("qkv",), "post_attention_layernorm": ("up",)}
    ),
    "falcon-rw": Family(
        ("falcon",), **_BLOOM, norms={"input_layernorm": ("qkv",), "post_attention_layernorm": ("up",)}
    ),
    "falcon-40b": Family(("falcon",), **_BLOOM, norms={"ln_attn": ("qkv",), "ln_mlp": ("up",)}),
    "falcon": Family(("falcon",), **_BLOOM, norms={"input_layernorm": ("qkv", "up")}),
    "mpt": Family(
        ("mpt",),
        blocks="transformer.blocks.*",
        roles={"qkv": "attn.Wqkv", "o": "attn.out_proj", "up": "ffn.up_proj", "down": "ffn.down_proj"},
        norms={"norm_1": ("qkv",), "norm_2": ("up",)},
        embed="transformer.wte",
        final_norm="transformer.norm_f",
    ),
    "biogpt": Family(
        ("biogpt",),
        blocks="biogpt.layers.*",
        roles=_OPT_ROLES,
        norms=_OPT_NORMS,
        embed="biogpt.embed_tokens",
        final_norm="biogpt.layer_norm",
        head="output_projection",
    ),
    "mixtral": Family(("mixtral",), **_EXPERTS, router="mlp.gate"),
    "qwen3-moe": Family(("qwen3_moe",), **_EXPERTS, router="mlp.gate", dense=_LLAMA_ROLES),
    "gpt-oss": Family(("gpt_oss",), **_EXPERTS, router="mlp.router"),
    "qwen2-moe": Family(
        ("qwen2_moe",),
        roles=_EXPERT_ROLES | _shared("mlp.shared_expert"),
        experts="mlp.experts",
        router="mlp.gate",
        dense=_LLAMA_ROLES,
        kept=("mlp.shared_expert_gate",),
    ),
    "glm4-moe": Family(
        ("glm4_moe",),
        roles=_EXPERT_ROLES | _shared("mlp.shared_experts"),
        experts="mlp.experts",
        router="mlp.gate",
        dense=_LLAMA_ROLES,
    ),
    "nanochat": Family(
        ("nanochat",),
        roles=_ATTENTION | {"up": "mlp.fc1", "down": "mlp.fc2"},
        norms={"input_layernorm": ("q", "k", "v"), "post_attention_layernorm": ("up",)},
    ),
    "persimmon": Family(
        ("persimmon",),
        roles={"qkv": "self_attn.query_key_value", "o": "self_attn.dense"} | _NEOX_MLP,
        norms={"input_layernorm": ("qkv",), "post_attention_layernorm": ("up",)},
        final_norm="model.final_layernorm",
    ),
    "granite-dense": Family(  # Granite 4 without experts and without Mamba, known by its wiring
        (),
        roles=_ATTENTION
        | {role: f"shared_mlp.input_linear.{role}_proj" for role in ("gate", "up")}
        | {"down": "shared_mlp.output_linear"},
        fused={"shared_mlp.input_linear": ("gate_proj", "up_proj")},
    ),
    "norms-unknown": Family((), norms={}),  # layers as a Llama's, norms like nobody's here
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
    "efficientnet": Family(
        ("EfficientNet", "MobileNetV3"),
        blocks="blocks.*",
        roles={
            "conv": "*.conv",
            "pw": "*.conv_pw",
            "reduce": "*.se.conv_reduce",
            "excite": "*.se.conv_expand",
            "pwl": "*.conv_pwl",
        },
        norms={},
        between={"conv_head": {"head": ""}, "classifier": {"classes": ""}},
        embed="conv_stem",
        final_norm="bn2",
        head="classifier",
        kind="vision",
        convolutional=True,
    ),
    "swin-v2": Family(
        ("SwinTransformerV2",),
        **_VIT
        | {
            "blocks": "layers.*.blocks.*",
            "between": {"layers.*.downsample": {"merge": "reduction"}},
            "head": "head.fc",
            "norms": {},
            "after": {"norm1": "o", "norm2": "down"},
            "kept": ("attn.cpb_mlp.0", "attn.cpb_mlp.2"),
        },
    ),
    "eva": Family(("Eva", "Beit"), **_VIT),
    "eva-split": Family(
        ("Eva",),
        **_VIT
        | {
            "roles": {role: f"attn.{role}_proj" for role in ("q", "k", "v")}
            | {"o": "attn.proj", "gate": "mlp.fc1_g", "up": "mlp.fc1_x", "down": "mlp.fc2"},
            "norms": {"norm1": ("q", "k", "v"), "norm2": ("gate", "up"), "mlp.norm": ("down",)},
        },
    ),
    "llava": _with_vision(
        ("llava", "llava_onevision"),
        {_TOWER: _CLIP_ROLES},
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
    "gemma3": _with_vision(("gemma3",), {_TOWER: _CLIP_ROLES}, {}, norms=_GEMMA_NORMS, after=_NORMS_BEHIND),
    "paligemma2": _with_vision(
        ("paligemma",),
        {_TOWER: _CLIP_ROLES},
        _ONE_LAYER,
        norms=_GEMMA_NORMS,
        after=_NORMS_BEHIND,
        template=_PREFIX,
    ),
    "paligemma": _with_vision(("paligemma",), {_TOWER: _CLIP_ROLES}, _ONE_LAYER, template=_PREFIX),
    "qwen3-vl": _with_vision(("qwen3_vl",), _QWEN3_TOWER, _QWEN3_MERGERS),
    "qwen3-vl-moe": _with_vision(
        ("qwen3_vl_moe",), _QWEN3_TOWER, _QWEN3_MERGERS, **_EXPERTS, router="mlp.gate", dense=_LLAMA_ROLES
    ),
    "idefics3": _with_vision(
        ("idefics3", "smolvlm"),
        {"model.vision_model.encoder.layers.*": _CLIP_ROLES},
        {"model.connector": {"in": "modality_projection.proj"}},
        language="model.text_model",
    ),
}

_SHARED_KEYS = "its blocks hand one another keys and values besides hidden states; Gemma 3 opens"
LACKING = {  # model_type -> what is missing for it here, where an entry would not be enough
    **dict.fromkeys(
        ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text", "gemma3n", "gemma3n_text"),
        _SHARED_KEYS,
    ),
}
