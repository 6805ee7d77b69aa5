"""What every option would change at a plan: one pass forward and back.

With the plan's weights W_u of a unit u, those W_u(b) that it would have at b bits, and the gradient G_u of
the plan's mean KL to them,

    KL(plan with u at b) - KL(plan)  ~  <G_u, W_u(b) - W_u> + q[u, b]
    q[u, b] = S[u, c] |W_u(b) - W_u|^2 / |W_u(c) - W_u(16)|^2,    c: the fewer bits of b and the plan's

At full precision G is zero, and a table of isolated costs S can say nothing of what errors do to each other.
At a plan G is what all the other errors make of this one: where they cancel it, it costs less than S says.
The second term, how far the unit's own weights move, is S carried over by distance.

Only the options next to the plan's are known, those one width up or down; what lies further away costs
infinitely much, and so do other embeddings. The solver takes the sums. What several units do to each other as
they move together is left out, so the second term is raised, at first by half and then by more until a step
wins, as Levenberg and Marquardt do (`Descent`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from quept.evaluate.reference import Reference
from quept.evaluate.tasks import EvalTask
from quept.models.clone import clone
from quept.plan import FULL, PrecisionPlan
from quept.runtime.backends import BoundLinear
from quept.runtime.model import ElasticModel

from .space import Space

Losses = Callable[[nn.Module], Iterable[Tensor]]  # of a view: parts whose sum is its mean KL
DAMPINGS = (0.5, 1.0, 2.0, 4.0, 0.25, 0.0)  # tried one after the other at each plan


@dataclass(frozen=True)
class Slopes:
    """first, second (options): the two terms of the module's docstring; `second` is infinite where nothing is
    known."""

    first: np.ndarray
    second: np.ndarray

    def costs(self, space: Space, damping: float) -> np.ndarray:
        """What the solver takes: both terms, the second raised by the damping; each unit's least is zero."""
        costs = self.first + (1 + damping) * self.second
        least = np.minimum.reduceat(costs, space.offsets)
        return costs - np.repeat(least, [len(unit.bits) for unit in space.units])


def has_slopes(elastic: ElasticModel, search: Reference | EvalTask, plan: PrecisionPlan) -> bool:
    """Whether steps are worth their time: on pictures and questions, where a gradient flows through the plan,
    which it does not where inputs or the KV cache are rounded. (On 2,048 tokens of text SmolLM2's gradient
    took as long as ten candidates, and what its step won there, 5 % at 94 MB, was lost on other text. On
    18,000 and 24,000 tokens its best steps won 1 to 2 % on SQuAD and nothing on WikiText.)"""
    if not isinstance(search, EvalTask):
        return False
    if plan.rounds_cache or any(b.activations != FULL for b in plan.resolve(elastic.layers).values()):
        return False
    view = elastic.view(plan)
    return all(isinstance(view.get_submodule(name), BoundLinear) for name in elastic.layers)


def slopes(elastic: ElasticModel, space: Space, picks: np.ndarray, losses: Losses) -> Slopes:
    """Returns them at the plan of `picks`."""
    view, widths = elastic.view(space.plan(picks)), dict(zip(space.units, space.bits(picks), strict=True))
    now = {name: bits for unit, bits in widths.items() for name in unit.layers}
    leaves = {name: _values(elastic, name, bits).requires_grad_() for name, bits in now.items()}
    bound = {name: view.get_submodule(name) for name in now}
    model = clone(view, {name: layer.bound(leaves[name], layer.bits) for name, layer in bound.items()})
    with torch.enable_grad():
        for loss in losses(model):
            loss.backward()
    first, second = np.zeros(len(space.costs)), np.full(len(space.costs), np.inf)
    second[picks] = 0.0
    for unit, pick, offset in zip(space.units, picks, space.offsets, strict=True):
        for option in (pick - 1, pick + 1):
            if not unit.layers or not offset <= option < offset + len(unit.bits):
                continue
            bits, fewer = unit.bits[option - offset], min(option, pick)
            slope = moved = error = 0.0
            for name in unit.layers:
                here, there = leaves[name].detach(), _values(elastic, name, bits)
                full, lower = _values(elastic, name, FULL), there if option < pick else here
                slope += torch.sum(leaves[name].grad * (there - here), dtype=torch.float64).item()
                moved += torch.sum((there - here).square(), dtype=torch.float64).item()
                error += torch.sum((lower - full).square(), dtype=torch.float64).item()
            first[option] = slope
            second[option] = space.costs[fewer] * moved / error if error else 0.0
    return Slopes(first, second)


def _values(elastic: ElasticModel, name: str, bits: int) -> Tensor:
    return elastic.values(name, bits).to(elastic.dtype, copy=True)


@dataclass
class Descent:
    """Steps downhill from the best plan so far. measure(picks) gives the slopes there."""

    space: Space
    measure: Callable[[np.ndarray], Slopes]
    _at: np.ndarray | None = None
    _slopes: Slopes | None = field(default=None, repr=False)
    _left: list[float] = field(default_factory=list)

    def step(self, best: np.ndarray, seen: Callable[[np.ndarray], bool]) -> np.ndarray | None:
        """Returns the next plan to measure, one that was not seen; None where there is none."""
        if self._at is None or not np.array_equal(self._at, best):
            self._at, self._slopes, self._left = best, self.measure(best), list(DAMPINGS)
        while self._left:
            picks = self.space.allocate(self._slopes.costs(self.space, self._left.pop(0)))
            if picks is not None and not seen(picks):
                return picks
        return None
