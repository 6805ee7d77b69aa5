"""What a model does behind its blocks: the head, and whatever it does with what that gives.

Some scale their logits (Cohere, Granite), some cap them softly (Gemma 2): `head_of` runs the model's own
forward on hidden states, and `is_linear` asks whether it does more than multiply.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import MoeModelOutputWithPast

from .clone import clone, shallow_copy
from .layout import ModelLayout

LARGE = 30.0  # hidden states whose logits a soft cap bends


def head_of(model: nn.Module, inner: str) -> Callable[[Tensor], Tensor]:
    """Returns what a model does behind its blocks and their norm: hidden states (n, hidden) -> logits (n,
    vocabulary), soft caps and scales included. inner: the module that gives hidden states. For one thread."""
    stand_in = shallow_copy(model.get_submodule(inner))
    whole = clone(model, {inner: stand_in})

    def logits(hidden: Tensor) -> Tensor:
        found = MoeModelOutputWithPast(
            last_hidden_state=hidden[None]
        )  # what every model reads of it is there
        stand_in.forward = lambda *_, **__: found
        ids = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)
        return whole(input_ids=ids, use_cache=False).logits[0]

    return logits


def inner_of(layout: ModelLayout) -> str:
    """Returns the module of a language model that gives hidden states: the one that its last norm is in."""
    return layout.final_norm.rpartition(".")[0]


@torch.inference_mode()
def is_linear(model: nn.Module, layout: ModelLayout) -> bool:
    """Whether the logits of a language model are linear in its hidden states."""
    generator = torch.Generator().manual_seed(0)
    hidden = LARGE * torch.randn(1, model.get_submodule(layout.head).in_features, generator=generator)
    states = torch.cat([0 * hidden, hidden, 2 * hidden]).to(model.device, model.dtype)
    none, once, twice = head_of(model, inner_of(layout))(states).float()
    return torch.allclose(twice - none, 2 * (once - none), rtol=1e-2, atol=1e-2 * float(once.abs().max()))
