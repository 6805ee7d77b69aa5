"""What recipes with routers learn of a model's weights, and the model at any plan while it is being learned.

The nested codes of a layer (`quept.numerics.nested`) are made once from its weight and stay. A width that has
ranks in the recipe learns how they are read, and nothing else does, so that what 2 bits learn never harms 8:

    y = x_b(S_b, Z_b) x + B_b (A_b x)

with scale and zero-point of each group of the width's own, and a low-rank correction that is read beside the
codes at that width alone. Both start from what is known without training: S_b and Z_b from least squares, B_b
A_b from the largest singular values of what rounding left, its columns weighted by the magnitude of the
inputs that they meet (LQER, arXiv 2402.02446). A `NestedTrainable` is a `Trainable`: the end-to-end stage
tunes it as it does any other.

Once there are routers it has routed plans, too. What a width learns there is for the tokens that get it, in
a model where others get more: at 2 bits these are the easy ones, of which the whole text is a poor picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from quept.engines.mobiquant.engine import Routes, parsed
from quept.engines.mobiquant.router import Router, depths
from quept.models import ModelLayout
from quept.numerics.adapters import RankSchedule
from quept.numerics.grid import group_size, grouped
from quept.numerics.nested import BITS, STEPS, codes_of, fitted, middles, read
from quept.plan import FULL, Bits

from .precision import seeded
from .trainable import Trainable

SMALLEST = 1e-8  # of a scale, whose logarithm is learned


class NestedLayer(nn.Module):
    """One linear layer. weight (out, in), bias (out,) or None and codes (out, in) uint8 are frozen.

    `clips`: of each width that learns (2, out, groups): the logarithm of the scale, and the zero-point in
    2-bit steps. `b`, `a`: one entry for each bit group, (out, rank) and (rank, in), as TrainableLayer has
    them. magnitudes (in,): root mean square of each input channel; None leaves corrections at zero, for a
    state to be loaded."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        schedule: RankSchedule,
        group: int,
        magnitudes: Tensor | None,
    ):
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.schedule, self.group = schedule, group
        self.codes, self.grid = codes_of(weight, group)
        self.b, self.a, self.static = nn.ParameterList(), nn.ParameterList(), nn.ParameterDict()
        self.clips = nn.ParameterDict()
        self.route: Callable[[float], tuple[Router, Tensor]] = _unrouted
        for bits, rank in zip(_widths(schedule), schedule.steps, strict=True):
            scales, zeros = fitted(weight, self.codes, bits, self.grid, group)
            if rank:
                start = torch.stack([scales.clamp(min=SMALLEST).log(), zeros / STEPS])
                self.clips[str(bits)] = nn.Parameter(start)
            left = weight - self.values(bits).detach() if rank else weight
            b, a = _largest(left, magnitudes, min(rank, *weight.shape))
            self.b.append(nn.Parameter(b))
            self.a.append(nn.Parameter(a))

    def forward(self, x: Tensor, bits: Bits, drop: float = 0.0) -> Tensor:
        """x (..., in) -> (..., out) at this width, or routed where the setting says so (the model's `routes`
        give this layer `route`); drop is for activations, which stay as they are."""
        average, most = parsed(bits.weights)
        if average is None:
            return self._product(x, most)
        tokens, (router, thresholds) = x.flatten(0, -2), self.route(average)
        scores = router.scores(tokens.detach().float())
        given = depths(scores, thresholds.to(scores.device), most)
        chosen = [(given == depth).nonzero()[:, 0] for depth in given.unique()]
        parts = [self._product(tokens[one], int(given[one[0]])) for one in chosen]
        order = torch.cat(chosen).argsort()
        return torch.cat(parts)[order].unflatten(0, x.shape[:-1])

    def _product(self, x: Tensor, bits: int) -> Tensor:
        y = linear(x, self.values(bits), self.bias)
        if str(bits) not in self.clips:
            return y
        own = self.schedule.group_of(bits)
        return y + linear(linear(x, self.a[own]), self.b[own])

    def values(self, bits: int) -> Tensor:
        """What the codes are read as (out, in) at 2..8 bits, or the weight as it is at 16."""
        if bits == FULL:
            return self.weight
        codes = self.codes >> (BITS - bits)
        if str(bits) not in self.clips:
            return read(codes, bits, self.grid, self.group)
        scales, zeros = self.clips[str(bits)]
        with torch.autocast(self.weight.device.type, enabled=False):
            step = scales.exp() / STEPS * (self.grid.scales > 0)
            return _Read.apply(codes, step, zeros * STEPS, bits, self.group)


class _Read(torch.autograd.Function):
    """codes (out, in), step and zeros (out, groups) -> step (middle - zero), differentiable in the latter."""

    @staticmethod
    def forward(ctx, codes: Tensor, step: Tensor, zeros: Tensor, bits: int, group: int) -> Tensor:
        ctx.save_for_backward(codes, step, zeros)
        ctx.bits, ctx.group = bits, group
        x = grouped(middles(codes, bits), group).sub_(zeros[..., None]).mul_(step[..., None])
        return x.reshape(len(codes), -1)[:, : codes.shape[1]].contiguous()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, step, zeros = ctx.saved_tensors
        g = grouped(grad, ctx.group)
        whole = g.sum(-1)
        by_step = (g * grouped(middles(codes, ctx.bits), ctx.group)).sum(-1) - zeros * whole
        return None, by_step, -step * whole, None, None


class NestedTrainable(Trainable):
    """A model and one NestedLayer for each of its layers. magnitudes: `{layer:
    (in,)}`, None where a state will be loaded."""

    def __init__(
        self,
        model: nn.Module,
        layout: ModelLayout,
        schedule: RankSchedule,
        group: int | str,
        seed: int,
        magnitudes: Mapping[str, Tensor] | None = None,
    ):
        self.layout, self._model, self.layers = layout, model, {}
        for name in layout.layers:
            source = model.get_submodule(name)
            weight, bias = source.weight.detach(), source.bias
            size = group_size(weight.shape[1], group)
            with seeded(weight.device, seed, name):
                bias = None if bias is None else bias.detach()
                seen = None if magnitudes is None else magnitudes[name]
                self.layers[name] = NestedLayer(weight, bias, schedule, size, seen)

    def routed(self, routes: Routes) -> None:
        """From now on plans may be routed by these."""
        for name, layer in self.layers.items():
            layer.route = partial(_route, routes, name)


def _route(routes: Routes, layer: str, average: float) -> tuple[Router, Tensor]:
    return routes.of(layer), routes.at(layer, average)


def _unrouted(average: float) -> tuple[Router, Tensor]:
    raise ValueError("there are no routers yet")


def _widths(schedule: RankSchedule) -> Iterable[int]:
    """The width of each bit group; of one without ranks the widest."""
    return [max(group) for group in schedule.groups]


def _largest(left: Tensor, magnitudes: Tensor | None, rank: int) -> tuple[Tensor, Tensor]:
    """B (out, rank) and A (rank, in) whose product is nearest to `left` (out, in) in columns weighted by the
    magnitudes (in,) of their inputs."""
    if not rank or magnitudes is None:
        return left.new_zeros(len(left), rank), left.new_zeros(rank, left.shape[1])
    weights = magnitudes.clamp(min=1e-3 * float(magnitudes.mean()))
    u, s, v = torch.svd_lowrank(left * weights, q=min(rank + 8, *left.shape), niter=2)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).contiguous(), (v[:, :rank] * root / weights[:, None]).T.contiguous()
