"""Which of its two neighbors on the grid each weight goes to, chosen for what the layer gives.

With H (in, in) the second moments of a layer's inputs at full precision, rounding W (out, in) to W' changes
what the layer gives by

    E |(W' - W) x|^2 = sum over rows of (W' - W) H (W' - W)^T

Inputs of a layer hang together, so that errors of one weight can be undone by those of others: AdaRound
(arXiv 2004.10568) learns who goes up and who goes down. Here it is found by coordinate descent as in
QuantEase (arXiv 2309.01885), one column after another for all rows at once, without a rate: column j, with
what all others have at that moment, wants the error

    e_j* = e_j - (E H)_j / H_jj

and takes the closer of its two. The first pass begins with nothing rounded, later ones go over it again. Each
input counts as much as the answers depend on what the layer gives there: moments are weighted by the squared
gradient of the log-probability of an answer drawn from the model's own (Fisher information), so that of a
vision transformer's last block the class token alone counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quept.models import ModelLayout
from quept.models.clone import clone
from quept.numerics.grid import Rounding, grouped, on_grid, scale_and_zero

from .logits import logits_of
from .precision import seeded

PASSES, TOGETHER = 3, 64  # over all columns; columns whose effect on the others is added at once
RIDGE = 0.01  # of the mean of the diagonal, added to it: what was not seen may come


@dataclass(frozen=True)
class Seen:
    """What one layer is given. moments: H (in, in), a mean over the samples; counts: for every batch how much
    each input counts, (rows,)."""

    moments: Tensor
    counts: tuple[Tensor, ...]


def seen_by_layers(
    model: nn.Module, layout: ModelLayout, batches: Iterable[Mapping[str, Tensor]], seed: int
) -> dict[str, Seen]:
    """What every layer is given for `batches`, inputs of the model's forward."""
    watched = {name: _Watched(model.get_submodule(name)) for name in layout.layers}
    view = clone(model, watched)
    for number, inputs in enumerate(batches):
        inputs = {name: t.detach().requires_grad_(t.is_floating_point()) for name, t in inputs.items()}
        log_probs = logits_of(view, inputs).float().log_softmax(-1).flatten(0, -2)
        with seeded(log_probs.device, seed, "moments", number):
            drawn = torch.multinomial(log_probs.detach().exp(), 1)
        log_probs.gather(1, drawn).sum().backward()
    return {name: layer.seen() for name, layer in watched.items()}


@torch.no_grad()
def second_nearest(rounding: Rounding, moments: Tensor, pull: Tensor | None = None) -> Tensor:
    """(out, in) bool: which weights go to the second nearest point of their grid. moments: H (in, in); pull
    (out, in): half the slope of what is minimized where nothing is rounded yet, none where it is least."""
    x = grouped(rounding.moved.float(), rounding.group)
    scale, zero, _, _ = scale_and_zero(x, rounding.bits, rounding.low, rounding.high)
    top, u = 2**rounding.bits - 1, x / scale
    near, far = (
        (q.add(zero).clamp(0, top).sub(zero) * scale - x).flatten(1)[:, : rounding.weight.shape[1]]
        for q in (on_grid(u), on_grid(u, torch.ones_like(u)))
    )  # errors
    moments = moments + torch.eye(len(moments), device=x.device) * (RIDGE * moments.diagonal().mean())
    curvature = moments.diagonal().clamp(min=torch.finfo(torch.float32).tiny)
    error = torch.zeros_like(near)  # E
    slope = torch.zeros_like(near) if pull is None else pull.clone()  # E H, and the pull
    chosen = torch.zeros_like(near, dtype=torch.bool)
    for _ in range(PASSES):
        for columns in curvature.argsort(descending=True).split(TOGETHER):
            part, within = slope[:, columns], moments[columns][:, columns]
            before = error[:, columns]
            for i, j in enumerate(columns.tolist()):
                wanted = error[:, j] - part[:, i] / curvature[j]
                chosen[:, j] = (far[:, j] - wanted).abs() < (near[:, j] - wanted).abs()
                now = torch.where(chosen[:, j], far[:, j], near[:, j])
                part.addr_(now - error[:, j], within[i])
                error[:, j] = now
            slope.addmm_(error[:, columns] - before, moments[columns])
    return chosen


class _Watched(nn.Module):
    """A linear layer, or a convolution of 1 x 1, that adds up the moments of its inputs and keeps how much
    each counts."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.__dict__["layer"] = layer
        self.out_features, self.in_features = layer.weight.shape[:2]
        self._convolves = isinstance(layer, nn.Conv2d)
        self._total, self._count, self._counts = torch.zeros(()), 0, []

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        seen = x.detach()

        def add(gradient: Tensor) -> None:
            given = (t.movedim(1, -1) if self._convolves else t for t in (seen, gradient))
            rows, slopes = (t.flatten(0, -2).float() for t in given)
            self._counts.append(slopes.square().sum(-1))
            rows = rows * self._counts[-1].sqrt()[:, None]
            self._total = self._total.to(rows.device) + rows.T @ rows
            self._count += len(seen)

        y.register_hook(add)
        return y

    def seen(self) -> Seen:
        return Seen(self._total / self._count, tuple(self._counts))
