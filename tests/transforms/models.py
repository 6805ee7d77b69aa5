"""Tiny models for the transforms: every family, tied, untied and biased, in float64 and in storage precision.

transformers' norms compute in float32 whatever they are given, which hides everything below 1e-7: `exact`
puts others in their place.
"""

from __future__ import annotations

import torch
from torch import nn

from quept.models import FAMILIES as TABLE
from quept.models import LoadedModel, fingerprint_of, layout_of
from quept.models.recognize import recognize
from quept.models.unfused import unfuse
from tests.tiny import CONFIGS, FAMILIES, MIXTURES, tiny_model, tiny_tokenizer, token_ids

TIED = {name: CONFIGS[name]["tie_word_embeddings"] for name in (*FAMILIES, "phi3")}
FUSED = (  # query, key and value in one matrix
    *("gpt-neox", "gpt2", "gpt-bigcode", "codegen", "bloom", "falcon", "falcon-40b", "falcon-rw", "mpt"),
    "persimmon",
)
CASES = {
    **{name: (name, {}) for name in CONFIGS if name not in (*MIXTURES, *FUSED)},
    **{f"{name}, tie {not tied}": (name, {"tie_word_embeddings": not tied}) for name, tied in TIED.items()},
    "llama, biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, one kv head": ("llama", {"num_key_value_heads": 1}),
    "llama, no grouping": ("llama", {"num_key_value_heads": 4}),
    "llama, no Hadamard order": ("llama", {"intermediate_size": 86, "hidden_size": 172, "head_dim": 18}),
    "llama, odd width": ("llama", {"intermediate_size": 75}),
    "qwen3, biased": ("qwen3", {"attention_bias": True}),
    "opt, no biases": ("opt", {"enable_bias": False}),
    "opt, gelu": ("opt", {"activation_function": "gelu"}),
    "opt, bare norms": ("opt", {"layer_norm_elementwise_affine": False}),
}


class ExactNorm(nn.Module):
    """x / rms(x), or (x - mean) / std, times w or 1 + w as the norm in whose place it stands."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.weight = getattr(norm, "weight", None)
        self.eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
        kind = type(norm).__name__
        self.offset, self.centred = float(kind.startswith("Gemma")), kind.endswith("LayerNorm")

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x if self.weight is None else x * (self.offset + self.weight)


def exact(name: str, **changes) -> LoadedModel:
    """A tiny model that computes in float64 throughout."""
    model = tiny_model(name, dtype=torch.float32, **changes).double()
    for path, module in list(model.named_modules()):
        if type(module).__name__.endswith(("RMSNorm", "CohereLayerNorm")):
            model.set_submodule(path, ExactNorm(module))
    return wrapped(model)


def wrapped(model: nn.Module) -> LoadedModel:
    """As `load` would return it."""
    model.eval().requires_grad_(False)
    family = recognize(model.config)
    unfuse(model, TABLE[family])
    layout = layout_of(model, family)
    return LoadedModel(
        model, tiny_tokenizer(), layout, "tiny", "Tiny", fingerprint_of(model), "made by a test"
    )


@torch.no_grad()
def logits(loaded: LoadedModel, ids: torch.Tensor | None = None) -> torch.Tensor:
    return loaded.model(input_ids=token_ids() if ids is None else ids, use_cache=False).logits
