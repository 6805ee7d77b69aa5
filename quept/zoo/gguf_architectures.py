"""What a GGUF file says of a model, as a table by architecture: `gguf_llama` reads by it, `quept.export.gguf`
writes by it. A new architecture is a new entry.

llama.cpp computes some of what a config says without being told (which layers see a window only, that the
weights of chosen experts add up to one): `computed` says what, so that a config that says otherwise is
refused when a file is written, and completed when one is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_QKV = {f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"}
_O = {"attn_output": "self_attn.o_proj"}
_ATTENTION = _ENDS | _QKV | _O
_MLP = {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_BEHIND = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_GATE_UP = {
    "ffn_up": ("mlp.gate_up_proj.gate_proj", "mlp.gate_up_proj.up_proj"),
    "ffn_down": "mlp.down_proj",
}
_FUSED_QKV = {"attn_qkv": tuple(f"self_attn.qkv_proj.{part}_proj" for part in "qkv")}
_EXPERTS = {"ffn_gate_inp": "mlp.gate"} | {
    f"ffn_{part}_exps": f"mlp.experts.*.{part}_proj" for part in ("gate", "up", "down")
}
_LLAMA = _ATTENTION | _NORMS | _HEAD_NORMS | _MLP
_OLMO = _ATTENTION | _HEAD_NORMS | _BEHIND | _MLP
_GEMMA = _ATTENTION | _MLP | _HEAD_NORMS | _BEHIND
_GEMMA |= {"attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm"}


def _windows(period: int) -> Callable[[Any], list[str]]:
    """Every so many layers one sees all, the others a window."""
    kinds = ["full_attention", "sliding_attention"]
    return lambda config: [kinds[(i + 1) % period > 0] for i in range(config.num_hidden_layers)]


def _query_scale(layers_of_27b: int) -> Callable[[Any], int]:
    """By which size queries are scaled: a head's, but for the largest Gemma of a generation."""
    return lambda config: (
        config.hidden_size // config.num_attention_heads
        if config.num_hidden_layers == layers_of_27b
        else config.head_dim
    )


@dataclass(frozen=True)
class Architecture:
    """name, model_type, kind: what llama.cpp calls it, transformers' config, and transformers' class.
    tensors: `{GGUF's name, of a block without its number: the layer or norm}`, several where the file has
    them below one another in one tensor, with a `*` where it has those of all experts in one. interleaved:
    whether llama.cpp wants the rows of q and k so. activation: (entry of the config, its value). offset: what
    is added to the weights of norms in the file. keys: `{further metadata: the config's entry}`. computed:
    see the module's docstring. windows: whether llama.cpp sees windows where the config says so. partial:
    whether it rotates a part of each head where the config says so. marked: metadata by which a file of this
    architecture is told from others of its name."""

    name: str
    model_type: str
    kind: str
    tensors: Mapping[str, str | tuple[str, ...]] = field(default_factory=lambda: MappingProxyType(_LLAMA))
    interleaved: bool = False
    activation: tuple[str, str] = ("hidden_act", "silu")
    offset: float = 0.0
    keys: Mapping[str, str] = field(default_factory=dict)
    computed: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    windows: bool = False
    partial: bool = False
    marked: str = ""

    def tensor_of(self, layer: str) -> str | None:
        """GGUF's name of the tensor that a layer's or norm's weight is in or is a part of; None for one that
        this architecture has not."""
        block = _BLOCK.match(layer)
        path = _EXPERT.sub("experts.*.", layer[block.end() :] if block else layer)
        for name, ours in self.tensors.items():
            if path == ours or (isinstance(ours, tuple) and path in ours):
                return f"blk.{block[1]}.{name}" if block else name
        return None

    def stored_as(self, tensor: str) -> str | None:
        """The layer or norm of transformers that holds what a tensor of GGUF does, with a `*` for the number
        of an expert; None for a tensor that this architecture has not."""
        *block, name = tensor.split(".")
        ours = self.tensors.get(name)
        if ours is None or (block and (len(block) != 2 or block[0] != "blk")):
            return None
        path = ours if isinstance(ours, str) else ours[0].rpartition(".")[0]
        return f"model.layers.{block[1]}.{path}" if block else path


_BLOCK = re.compile(r"model\.layers\.(\d+)\.")
_EXPERT = re.compile(r"experts\.\d+\.")
_GELU = ("hidden_activation", "gelu_pytorch_tanh")
_WINDOW = {"attention.sliding_window": "sliding_window"}
ARCHITECTURES = (  # the first of a name is what a file of that name without a mark is read as
    Architecture("llama", "llama", "LlamaForCausalLM", interleaved=True),
    Architecture("llama", "mistral", "MistralForCausalLM", interleaved=True),  # differs by its window alone
    Architecture("qwen2", "qwen2", "Qwen2ForCausalLM"),
    Architecture("qwen3", "qwen3", "Qwen3ForCausalLM"),
    Architecture(
        "gemma2",
        "gemma2",
        "Gemma2ForCausalLM",
        _GEMMA,
        activation=_GELU,
        offset=1.0,
        keys=_WINDOW
        | {
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        computed={"query_pre_attn_scalar": _query_scale(46), "layer_types": _windows(2)},
        windows=True,
    ),
    Architecture(
        "gemma3",
        "gemma3_text",
        "Gemma3ForCausalLM",
        _GEMMA,
        activation=_GELU,
        offset=1.0,
        keys=_WINDOW,
        computed={
            "query_pre_attn_scalar": _query_scale(62),
            "layer_types": _windows(6),
            "attn_logit_softcapping": lambda config: None,
            "final_logit_softcapping": lambda config: None,
        },
        windows=True,
    ),
    Architecture(
        "phi3",
        "phi3",
        "Phi3ForCausalLM",
        _ENDS | _FUSED_QKV | _O | _NORMS | _GATE_UP,
        keys=_WINDOW,
        partial=True,
    ),
    Architecture("olmo2", "olmo2", "Olmo2ForCausalLM", _OLMO),
    Architecture(
        "olmo2",
        "olmo3",
        "Olmo3ForCausalLM",
        _OLMO,
        keys=_WINDOW,
        computed={"layer_types": _windows(4)},
        windows=True,
        marked="attention.sliding_window",
    ),
    Architecture(
        "granite",
        "granite",
        "GraniteForCausalLM",
        interleaved=True,
        keys={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
    Architecture(
        "smollm3",
        "smollm3",
        "SmolLM3ForCausalLM",
        interleaved=True,
        computed={"no_rope_layers": lambda c: [int((i + 1) % 4 > 0) for i in range(c.num_hidden_layers)]},
    ),
    Architecture(
        "glm4",
        "glm4",
        "Glm4ForCausalLM",
        _ATTENTION
        | _NORMS
        | _GATE_UP
        | {"post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"},
        partial=True,
    ),
    Architecture(
        "qwen3moe",
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        _ATTENTION | _NORMS | _HEAD_NORMS | _EXPERTS,
        keys={
            "expert_count": "num_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "moe_intermediate_size",
        },
        computed={
            "norm_topk_prob": lambda config: True,
            "mlp_only_layers": lambda config: [],
            "decoder_sparse_step": lambda config: 1,
        },
    ),
)


def written_as(model_type: str) -> Architecture | None:
    """The architecture that a model of this type of transformers is written as."""
    return next((one for one in ARCHITECTURES if one.model_type == model_type), None)


def read_as(name: str, says: Callable[[str], Any]) -> Architecture | None:
    """The architecture of a file of this name. says: what the file says of a key, None where it says
    nothing."""
    named = [one for one in ARCHITECTURES if one.name == name]
    return next((one for one in named if one.marked and says(one.marked)), next(iter(named), None))
