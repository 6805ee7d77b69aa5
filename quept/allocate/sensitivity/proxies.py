"""A cheap stand-in for the sensitivity table: the error that rounding a weight makes in its layer's output.

    activation-weighted   P[layer, b] = mean over positions of ||(W_b - W) x||^2
    Fisher-weighted       P[layer, b] = mean over positions of (g . (W_b - W) x)^2 / 2

x is the layer's input at full precision, g the gradient of the log-probability of the window's words,
drawn from the model itself, by the layer's output. Half of E[(g . dy)^2] is what a change dy of that
output alone costs in KL to second order: the Fisher-weighted metrics are in nats, and miss only what
changes at several positions do together and what is beyond second order (few bits). The
activation-weighted ones say nothing of how much the rest of the model cares. One forward pass, or one
forward and backward, over each window: seconds, not minutes.

`agreement(proxy, table)` says how well one ranks what the other measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from quept.data.windows import Windows
from quept.models.clone import clone
from quept.numerics.hadamard import hadamard_transform
from quept.plan import FULL, QUANTIZED_BITS, PrecisionPlan
from quept.runtime.backends import BoundLinear
from quept.runtime.model import ElasticModel

from .passes import Through

Costs = Mapping[str, Mapping[int, float]]


def proxy(
    elastic: ElasticModel,
    windows: Windows,
    widths: Iterable[int] = QUANTIZED_BITS,
    *,
    fisher: bool = False,
    seed: int = 0,
) -> dict[str, dict[int, float]]:
    """`{layer: {bits: P}}` over all positions of `windows`; fisher: weighted by gradients, with words drawn
    from `seed`."""
    widths = tuple(widths)
    sums = {name: dict.fromkeys(widths, 0.0) for name in elastic.layers}
    view = elastic.view(PrecisionPlan.full())
    watched = {name: _Watched(elastic, name, view.get_submodule(name), sums[name]) for name in elastic.layers}
    generator = torch.Generator().manual_seed(seed)
    for ids in windows.ids:
        ids = ids[None].to(elastic.device)
        if fisher:
            _backward(elastic, clone(view, watched), ids, generator)
        else:
            with torch.inference_mode():
                clone(view, watched | {elastic.layout.head: Through()})(input_ids=ids, use_cache=False)
    positions = windows.ids.numel() * (2 if fisher else 1)
    return {name: {bits: total / positions for bits, total in row.items()} for name, row in sums.items()}


def agreement(ours: Costs, table: Costs) -> dict[str, float]:
    """Rank correlation over every layer and width that both know, "all", and among the layers at each width:
    {"all": 0.97, "2": 0.8, ...}."""
    both = [(name, bits) for name in ours if name in table for bits in ours[name] if bits in table[name]]
    groups = {"all": both} | {
        str(bits): [pair for pair in both if pair[1] == bits] for bits in sorted({b for _, b in both})
    }
    return {
        key: rank_correlation([ours[n][b] for n, b in pairs], [table[n][b] for n, b in pairs])
        for key, pairs in groups.items()
    }


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: the correlation of ranks, equal values sharing theirs; not a number where one list is
    constant."""
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"two equally long lists of at least two are needed; got {len(a)} and {len(b)}")
    x, y = (_ranks(values) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread else float("nan")


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, which, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def _backward(elastic: ElasticModel, model: nn.Module, ids: Tensor, generator: torch.Generator) -> None:
    """The gradient of the log-probability of words drawn from the model, to every watched output."""
    embed = model.get_submodule(elastic.layout.embed)
    with torch.inference_mode(False), torch.enable_grad():
        hidden = embed(ids).detach().clone().requires_grad_()
        logits = model(inputs_embeds=hidden, use_cache=False).logits[0].float()
        drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator).to(logits.device)
        logits.log_softmax(-1).gather(-1, drawn).sum().backward()


class _Watched(nn.Module):
    """A layer at full precision that adds up, into `sums`, what rounding it would change: in its output as it
    runs or, where gradients are wanted, weighted by them as they arrive."""

    def __init__(self, elastic: ElasticModel, name: str, layer: BoundLinear, sums: dict[int, float]):
        super().__init__()
        self.elastic, self.name, self.layer, self.sums = elastic, name, layer, sums

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        if out.requires_grad:
            seen = x.detach()
            out.register_hook(lambda gradient: self.add(seen, gradient))
        else:
            self.add(x, None)
        return out

    @torch.no_grad()
    def add(self, x: Tensor, gradient: Tensor | None) -> None:
        x = (hadamard_transform(x) if self.layer.online else x).flatten(0, -2).float()
        weight = self.elastic.values(self.name, FULL).float()
        for bits in self.sums:
            change = x @ (self.elastic.values(self.name, bits) - weight).T
            if gradient is not None:
                change = (change * gradient.flatten(0, -2).float()).sum(-1)
            self.sums[bits] += change.double().square().sum().item()
