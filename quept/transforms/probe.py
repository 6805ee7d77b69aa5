"""Does a transformed model still answer as before? Both are run on a few random tokens or pictures.

The tables of families say which layer reads which norm; a model that is wired in another way (norms behind
the layers, something between a norm and its reader) fits them by name and is destroyed by a transform that is
right everywhere else. So each transformed model is tried:

    difference = rms(logits after - logits before) / rms(logits before - their mean over the outputs)

Rounding the new weights once to 16 bits leaves a few thousandths of that, to 32 bits a millionth; a function
that was not kept shows tenths. Models run in float32 at least, each module widened only while it runs, so
that a large model never lies in memory twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quept.models import LoadedModel
from quept.models.clone import clone
from quept.models.vision import class_logits

TOKENS, PICTURES = 16, 2
LIMITS = {torch.float32: 1e-3, torch.float64: 1e-6}
LIMIT_16_BITS = 0.05


def kept(before: LoadedModel, after: LoadedModel) -> tuple[bool, float]:
    """Whether the function was kept, as well as its weights can hold it, and the difference."""
    found = difference(before, after)
    return found <= LIMITS.get(next(before.model.parameters()).dtype, LIMIT_16_BITS), found


@torch.no_grad()
def difference(before: LoadedModel, after: LoadedModel) -> float:
    """How far the answers of `after` are from those of `before`, as a share of their spread."""
    inputs = _inputs(before)
    old, new = (_answers(loaded.model, inputs) for loaded in (before, after))
    spread = (old - old.mean(dim=-1, keepdim=True)).square().mean().sqrt()
    return float((new - old).square().mean().sqrt() / spread.clamp(min=1e-12))


def _inputs(loaded: LoadedModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    device = next(loaded.model.parameters()).device
    if loaded.vision:
        dtype = torch.promote_types(next(loaded.model.parameters()).dtype, torch.float32)
        shape = (PICTURES, *loaded.vision.data["input_size"])
        return torch.randn(shape, generator=generator, dtype=dtype).to(device)
    vocabulary = loaded.model.get_submodule(loaded.layout.embed).num_embeddings
    return torch.randint(vocabulary, (1, TOKENS), generator=generator).to(device)


def _answers(model: nn.Module, inputs: Tensor) -> Tensor:
    model = clone(model, {})
    for module in model.modules():
        if any(p is not None for p in module._parameters.values()):
            narrow = module._parameters
            module.register_forward_pre_hook(_widen)
            module.register_forward_hook(
                lambda module, *_, narrow=narrow: module.__dict__.update(_parameters=narrow)
            )
    out = model(inputs) if inputs.is_floating_point() else model(input_ids=inputs, use_cache=False).logits
    return class_logits(out.double())


def _widen(module: nn.Module, _args) -> None:
    module.__dict__["_parameters"] = {
        key: p if p is None else nn.Parameter(p.to(torch.promote_types(p.dtype, torch.float32)), False)
        for key, p in module._parameters.items()
    }
