"""The best bits for a budget: of all plans that fit the bytes, the one with the smallest summed sensitivity.

    minimise   sum over units of cost[u, its option]      (a unit: a layer, a tie group, the embeddings,
                                                           a block's KV cache where a context counts)
    such that  sum over units of bytes[u, its option] + what no plan touches  <=  budget

One option a unit under one budget is the multiple-choice knapsack, see `knapsack`. The plans that its
relaxation passes through, from the smallest on, are the `path` that a slider runs along: on it the best plan
of any budget is at most one step away.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING

from quept.plan import FULL, Bits, PrecisionPlan

from ..sensitivity.table import SensitivityError, SensitivityTable
from .constraints import (
    FREE,
    AllocationError,
    Constraints,
    Unit,
    megabytes,
    too_small,
    units,
)
from .knapsack import Hull, knapsack, undominated

if TYPE_CHECKING:
    from quept.runtime.sizes import Sizes


@dataclass(frozen=True)
class Allocation:
    """A plan, its deploy bytes, its cost s(plan), and what the table predicts of it ({} where it has nothing
    to predict from). No plan within the budget costs less than cost - gap: `gap` is 0 where the plan is
    proven the best, and that is the rule."""

    plan: PrecisionPlan
    bytes: int
    cost: float
    predicted: dict[str, float]
    gap: float = 0.0


def allocate(
    table: SensitivityTable, sizes: Sizes, budget: int, constraints: Constraints = FREE
) -> Allocation:
    """The plan of the smallest s among those of at most `budget` deploy bytes.

    AllocationError where none fits, and as `units` raises it."""
    choices = units(table, sizes, constraints)
    found = knapsack([unit.options for unit in choices], _whole(budget) - sizes.fixed)
    if found is None:
        least = sizes.fixed + sum(min(unit.bytes) for unit in choices)
        raise AllocationError(too_small(least, budget, sizes.context))
    picked, gap = found
    taken = sizes.fixed + sum(unit.bytes[i] for unit, i in zip(choices, picked, strict=True))
    cost = math.fsum(unit.costs[i] for unit, i in zip(choices, picked, strict=True))
    widths = [unit.bits[i] for unit, i in zip(choices, picked, strict=True)]
    plan = _plan(sizes.layers, choices, widths, taken, constraints)
    try:
        predicted = table.predicted(plan)
    except SensitivityError:
        predicted = {}
    return Allocation(plan, taken, cost, predicted, gap)


@dataclass(frozen=True)
class Step:
    """Unit number `unit` goes to `bits`; `bytes` and `cost` are then those of the whole plan."""

    unit: int
    bits: int
    bytes: int
    cost: float


@dataclass(frozen=True)
class Path:
    """The plans on the lower convex hull of (bytes, cost), from the smallest on. `start` has the bits of each
    unit in the smallest, `bytes` and `cost` are its own; a step gives one unit more bits, and steps come in
    order of falling benefit per byte. The plan for a budget is the start and the steps before the first that
    does not fit: of its own bytes there is no better plan, and the best one within the budget is better by
    less than what that step saves. `layers` are all layers in order."""

    layers: tuple[str, ...]
    units: tuple[Unit, ...]
    constraints: Constraints
    start: tuple[int, ...]
    bytes: int
    cost: float
    steps: tuple[Step, ...]

    def fitting(self, budget: int) -> int:
        """How many steps fit; AllocationError where not even the start does."""
        if budget < self.bytes:
            raise AllocationError(too_small(self.bytes, budget))
        return bisect_right(self.steps, budget, key=lambda step: step.bytes)

    def plan(self, count: int) -> PrecisionPlan:
        """The plan after the first `count` steps."""
        widths = list(self.start)
        for step in self.steps[:count]:
            widths[step.unit] = step.bits
        return _plan(self.layers, self.units, widths, self._after(count).bytes, self.constraints)

    def _after(self, count: int) -> Path | Step:
        return self.steps[count - 1] if count else self

    def to_dict(self) -> dict:
        """For a slider: {"start": {"w": bits of each of `layers`, "e": of the embeddings, "bytes", "cost"},
        "steps": [[unit, bits, bytes after it, cost after it], ...], "units": [[positions of its layers],
        ...]}. Unit -1 is the embeddings."""
        position = {name: i for i, name in enumerate(self.layers)}
        weights, embeddings, _ = _widths(self.layers, self.units, self.start)
        number = [i if unit.layers else -1 for i, unit in enumerate(self.units) if not unit.cache]
        return {
            "start": {
                "w": list(weights.values()),
                "e": embeddings,
                "bytes": self.bytes,
                "cost": _short(self.cost),
            },
            "steps": [
                [number[s.unit], s.bits, s.bytes, _short(s.cost)]
                for s in self.steps
                if s.unit < len(number)  # the KV cache comes last and is no part of the slider's plans
            ],
            "units": [[position[name] for name in unit.layers] for unit in self.units if unit.layers],
        }


def path(table: SensitivityTable, sizes: Sizes, constraints: Constraints = FREE) -> Path:
    """All plans on the lower convex hull of (bytes, cost). AllocationError as `units` raises it."""
    choices = tuple(units(table, sizes, constraints))
    options = [unit.options for unit in choices]
    alive = [undominated(unit) for unit in options]
    hull = Hull.of(options, alive)
    least = sizes.fixed + sum(unit.bytes[kept[0]] for unit, kept in zip(choices, alive, strict=True))
    lowest = math.fsum(unit.costs[kept[-1]] for unit, kept in zip(choices, alive, strict=True))
    moves = zip(hull.steps(len(hull.unit)), hull.reach[1:].tolist(), hull.left[1:].tolist(), strict=True)
    return Path(
        layers=tuple(sizes.layers),
        units=choices,
        constraints=constraints,
        start=tuple(unit.bits[kept[0]] for unit, kept in zip(choices, alive, strict=True)),
        bytes=least,
        cost=float(hull.left[0]) + lowest,
        steps=tuple(Step(u, choices[u].bits[i], least + b, lowest + c) for (u, i), b, c in moves),
    )


def _widths(
    layers: Sequence[str], choices: Sequence[Unit], widths: Sequence[int]
) -> tuple[dict[str, int], int, dict[str, int]]:
    """Bits of every layer, in the order of `layers`, of the embeddings, and of the KV cache of each block
    that is among the units."""
    of_layer, embeddings, cache = dict.fromkeys(layers, FULL), FULL, {}
    for unit, bits in zip(choices, widths, strict=True):
        embeddings = embeddings if unit.layers or unit.cache else bits
        of_layer.update(dict.fromkeys(unit.layers, bits))
        cache.update(dict.fromkeys(unit.cache, bits))
    return of_layer, embeddings, cache


def _plan(
    layers: Sequence[str],
    choices: Sequence[Unit],
    widths: Sequence[int],
    taken: int,
    constraints: Constraints,
) -> PrecisionPlan:
    """The commonest width as the default, and a rule for each layer that has another."""
    weights, embeddings, cache = _widths(layers, choices, widths)
    bits_of = {name: Bits(bits, constraints.inputs(bits)) for name, bits in weights.items()}
    default = Counter(bits_of.values()).most_common(1)[0][0] if bits_of else Bits()
    rules = {name: bits for name, bits in bits_of.items() if bits != default}
    name = f"{megabytes(taken)}, allocated"
    return PrecisionPlan.of(rules, default, name=name, embeddings=embeddings).with_cache(cache)


def _whole(budget: int) -> int:
    try:
        if isinstance(budget, bool):
            raise TypeError
        return index(budget)
    except TypeError:
        raise AllocationError(
            f"a budget is a whole number of bytes; got {budget!r:.100} (parse_budget reads '60 MB')"
        ) from None


def _short(cost: float) -> float:
    return float(f"{cost:.9g}")
