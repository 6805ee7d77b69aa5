"""A view of a Llama-like model -> the step that reads one token in one call (quept.kernels.decoder).

`decoder_of(view)` returns the Decoder over the view's own weights, packed or dense, or None where the
view is of a family, or holds a layer or a hook, that C does not know: then its own forward pass decodes.
`OneToken` is that step with a conversation's cache, which stays what every other reader takes it for;
where it is in another form (a window, a batch) the view reads the token itself. *Exact* differs from the
view by the order of summation only; *fast* rounds what every packed layer reads to 8 bits.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from quept.engines.reports import BITS, report
from quept.kernels import Missing, PackedRows, PackedWeight, loaded
from quept.kernels.decoder import CacheTable, Decoder, Layer, Linear, Rotary
from quept.numerics.nested import SLICE
from quept.plan import FULL

from .backends import BoundLinear
from .kvcache import GrowingLayer, QuantizedLayer

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # whose blocks c/decode.c computes
FIXED_ROPE = ("default", "linear", "llama3", "yarn")  # frequencies that do not depend on the text's length


class OneToken:
    """One token of a conversation at a time."""

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._of: tuple[Cache, CacheTable] | None = None  # the table of the cache that was read last
        self._weights = int(decoder.nested.sum())
        self._slices = torch.zeros(decoder.nested.shape, dtype=torch.uint8) if self._weights else None

    def __call__(self, cache: Cache, token: int, length: int) -> Tensor | None:
        """Reads a token into a cache that holds `length` -> logits (vocabulary,) float32; None, with nothing
        done, where the cache is of another form."""
        table = self._table(cache, length)
        if table is None:
            return None
        logits = self._decoder.step(table, token, length, slices=self._slices)
        if self._weights:
            spent = (self._slices * self._decoder.nested).sum() * SLICE / self._weights
            report(BITS, spent[None], self._weights)
        for layer in cache.layers:
            layer.advance(1)
        return logits

    def _table(self, cache: Cache, length: int) -> CacheTable | None:
        if self._of is not None and self._of[0] is cache and length < self._of[1].room:
            return self._of[1]
        self._of = None
        if length and all(type(layer) in (GrowingLayer, QuantizedLayer) for layer in cache.layers):
            with suppress(ValueError):
                self._of = cache, self._decoder.keep([layer.stretch() for layer in cache.layers])
        return self._of and self._of[1]


def decoder_of(view: PreTrainedModel, fast: bool = False) -> Decoder | None:
    """See the module docstring."""
    config = view.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    known = config.model_type in FAMILIES and hasattr(view, "lm_head") and rope in FIXED_ROPE
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in view.modules())
    if not known or hooked or config.hidden_act not in ("silu", "swish") or view.device.type != "cpu":
        return None
    try:
        loaded()
        body = view.model
        return Decoder(
            [_layer(block) for block in body.layers],
            _embedding(body.embed_tokens),
            _linear(view.lm_head),
            body.norm.weight,
            Rotary(body.rotary_emb.inv_freq, float(body.rotary_emb.attention_scaling)),
            config.num_attention_heads,
            config.rms_norm_eps,
            fast,
        )
    except (Missing, ValueError, _Unknown):
        return None


class _Unknown(Exception):
    """A module that C does not compute."""


def _layer(block: nn.Module) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    norms = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    return Layer(
        *(_linear(getattr(attention, f"{name}_proj")) for name in "qkvo"),
        *(_linear(getattr(mlp, f"{name}_proj")) for name in ("gate", "up", "down")),
        block.input_layernorm.weight,
        block.post_attention_layernorm.weight,
        *(norm and norm.weight for norm in norms),
    )


def _linear(module: nn.Module) -> Linear:
    if offered := getattr(module, "in_one_call", None):
        return offered
    bound = isinstance(module, BoundLinear)
    plain = type(module) is nn.Linear or (bound and module.bits.activations == FULL and not module.online)
    if not plain:
        raise _Unknown
    return Linear(_weight(module), module.bias)


def _embedding(module: nn.Module) -> PackedWeight | PackedRows | Tensor:
    if type(module) is not nn.Embedding and not hasattr(module, "codes"):
        raise _Unknown
    return _weight(module)


def _weight(module: nn.Module) -> PackedWeight | PackedRows | Tensor:
    codes = getattr(module, "codes", None)
    return codes if isinstance(codes, PackedWeight | PackedRows) else module.weight.detach()
