"""Tiny models for the transforms: every family, tied, untied and biased, in float64 and in storage precision.

transformers' RMSNorm computes in float32 whatever it is given, which hides everything below 1e-7: `exact`
puts torch's in its place.
"""

from __future__ import annotations

import torch
from torch import nn

from quept.models import LoadedModel, fingerprint_of, layout_of
from tests.tiny import CONFIGS, tiny_model, tiny_tokenizer, token_ids

TIED = {name: config["tie_word_embeddings"] for name, config in CONFIGS.items()}
CASES = {
    **{name: (name, {}) for name in CONFIGS},
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


def exact(name: str, **changes) -> LoadedModel:
    """A tiny model that computes in float64 throughout."""
    model = tiny_model(name, dtype=torch.float32, **changes).double()
    for path, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            norm = nn.RMSNorm(len(module.weight), module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(path, norm)
    return wrapped(model)


def wrapped(model: nn.Module) -> LoadedModel:
    """As `load` would return it."""
    model.eval().requires_grad_(False)
    return LoadedModel(
        model, tiny_tokenizer(), layout_of(model), "tiny", "Tiny", fingerprint_of(model), "made by a test"
    )


@torch.no_grad()
def logits(loaded: LoadedModel, ids: torch.Tensor | None = None) -> torch.Tensor:
    return loaded.model(input_ids=token_ids() if ids is None else ids, use_cache=False).logits
