"""What a rule may look at: one pass forward and back over a text at full precision.

With x (t, in) a layer's input, g (t, out) the gradient of the loss to its output, at t positions:

    inputs     mean over positions of x_j^2                     (in,)
    gradient   mean over windows of g^T x                       (out, in)
    fisher     mean over positions of (g^2)^T (x^2)             (out, in): each position is a sample
    change     1 - cos(input, output) of each block, a mean over positions

The loss is that of the next token, a mean over the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, linear

from quept.data.windows import Windows
from quept.models.clone import clone
from quept.numerics.hadamard import hadamard_transform
from quept.plan import FULL, PrecisionPlan
from quept.runtime.model import ElasticModel


@dataclass(frozen=True)
class Seen:
    """See the module's docstring. inputs, gradient, fisher by layer; change by block."""

    inputs: Mapping[str, Tensor]
    gradient: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor]
    change: Mapping[str, float]


def seen(elastic: ElasticModel, windows: Windows) -> Seen:
    """Returns what the layers of a language model are given and how the loss answers to them."""
    view, head = elastic.view(PrecisionPlan.full()), elastic.layout.head
    layers = {
        name: _Layer(elastic.values(name, FULL).float(), view.get_submodule(name)) for name in elastic.layers
    }
    weight = elastic.base.get_submodule(head).weight.float().to(elastic.device)
    blocks = {block.name: _Block() for block in elastic.layout.blocks}
    model = clone(view, layers | {head: _Head(weight)})
    for name, block in blocks.items():
        model.get_submodule(name).register_forward_hook(block)
    embed = model.get_submodule(elastic.layout.embed)
    for ids in windows.ids.to(elastic.device):
        words = embed(ids[None]).detach().float().requires_grad_()
        logits = model(inputs_embeds=words, use_cache=False).logits[0, :-1].float()
        cross_entropy(logits, ids[1:]).backward()
    return Seen(
        inputs={name: layer.inputs / layer.positions for name, layer in layers.items()},
        gradient={name: layer.gradient / len(windows) for name, layer in layers.items()},
        fisher={name: layer.fisher / layer.positions for name, layer in layers.items()},
        change={name: block.change / len(windows) for name, block in blocks.items()},
    )


class _Layer(nn.Module):
    """A layer that sums up what passes through it, forward and back."""

    def __init__(self, weight: Tensor, layer: nn.Module):
        super().__init__()
        self.__dict__["weight"], self.bias, self.online = weight, layer.bias, layer.online
        self.inputs, self.positions = torch.zeros(weight.shape[1], device=weight.device), 0
        self.gradient, self.fisher = torch.zeros_like(weight), torch.zeros_like(weight)

    def forward(self, x: Tensor) -> Tensor:
        x = hadamard_transform(x) if self.online else x
        y, flat = linear(x, self.weight, self.bias), x.detach().flatten(0, -2)
        self.inputs += flat.square().sum(0)
        self.positions += len(flat)

        def back(grad: Tensor) -> None:
            grad = grad.flatten(0, -2)
            self.gradient.addmm_(grad.T, flat)
            self.fisher.addmm_(grad.square().T, flat.square())

        y.register_hook(back)
        return y


class _Head(nn.Module):
    def __init__(self, weight: Tensor):
        super().__init__()
        self.__dict__["weight"] = weight

    def forward(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.weight)


class _Block:
    """Hears what a block was given and gave."""

    change = 0.0

    def __call__(
        self, module: nn.Module, given: tuple[Tensor, ...], found: Tensor | tuple[Tensor, ...]
    ) -> None:
        out = found[0] if isinstance(found, tuple) else found
        self.change += 1 - cosine_similarity(given[0].detach(), out.detach(), dim=-1).mean().item()
