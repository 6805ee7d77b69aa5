"""The best plan known for a budget: the solver's, unless one that was measured whole is known to be better.

    found = best(table, sizes, budget, constraints, front)
    found.allocation.plan, found.kl, found.origin      # "allocated", "uniform" or "front"

The solver is exact in summed sensitivities, and below 4 bits those are not KL: a plan of many widths shows
more than uniform plans of the same sum. So its plan is compared with every plan that was measured whole, fits
the budget and keeps the constraints: the uniform ones of the table, and those of the measured front. Their KL
is known. That of the solver's plan is, unless it is one of them, read off the front at its sum s,

    log KL linear in log s, between the two plans of the front beside it; beyond its ends in proportion to s

or, without a front, off the table's curve. What is read off is no measurement: a plan that was searched for
the front and takes as much (CLOSE) of the budget stands before it, unless it is off by more than predictions
of the front's plans are. The curve is of uniform plans and flatters
mixed ones at few bits (by 1.4 for SmolLM2 at 60 MB), so a front makes the choice better. It counts only if it
was measured on what the table's whole plans were measured on. Where the sizes count a context, a measured
plan's KV cache gets the best widths for the room that its weights leave, and what they cost by themselves is
added to its KL.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from quept.plan import FULL, Bits, PrecisionPlan

from ..sensitivity.table import FULL_PRECISION, SensitivityError, SensitivityTable
from .constraints import FREE, Constraints, Unit, units
from .knapsack import knapsack
from .solver import Allocation, allocate

if TYPE_CHECKING:
    from quept.runtime.sizes import Sizes

    from ..front import Front

Origin = Literal["allocated", "uniform", "front"]
SIZE = ("tokens", "context")
CLOSE = 0.995  # of the bytes of the solver's plan


@dataclass(frozen=True)
class Best:
    """allocation: the plan, its bytes and cost; its gap counts from what the solver found. kl: what the plan
    measured, else what it should show, None where the table cannot tell. measured: {"kl", "ppl",
    "same_top", ...} of a plan that was measured whole, else empty. passed_over: the KL that the solver's plan
    should show, where this is another one."""

    allocation: Allocation
    origin: Origin
    kl: float | None
    measured: Mapping[str, float] = field(default_factory=dict)
    passed_over: float | None = None

    def describe(self) -> str:
        """Where the plan is from, as a sentence; empty for the solver's."""
        if self.origin == "allocated":
            return ""
        tier = "measured " if self.measured else ""
        what = "a uniform plan" if self.origin == "uniform" else "from the measured front"
        stands = "is below" if self.kl < self.passed_over else "is surer than"
        return (
            f"{self.allocation.plan.name}, {what}: its {tier}KL of {self.kl:.3g} {stands} the "
            f"{self.passed_over:.3g} that the solver's plan should show."
        )


def best(
    table: SensitivityTable,
    sizes: Sizes,
    budget: int,
    constraints: Constraints = FREE,
    front: Front | None = None,
) -> Best:
    """The plan of the smallest KL that is known of, among those of at most `budget` deploy bytes; raises as
    `allocate` does. Its KL is never above that of a measured plan which fits and keeps the constraints."""
    solved = allocate(table, sizes, budget, constraints)
    front = front if front and _same_measurement(table, front) else None
    choices = units(table, sizes, constraints)
    known = [row for row in _measured(table, front) if sizes.holds(row[1])]
    known = [_with_cache(*row, sizes, budget, choices) for row in known]
    fitting = [row for row in known if sizes.deploy(row[1]) <= budget]
    own = solved.plan.key(table.layers)
    same = [row for row in fitting if row[1].key(table.layers) == own and row[2]]
    measured = same[0][2] if same else {}
    expected = measured["kl"] if same else _expected(table, solved.plan, front)
    if expected is None:
        return Best(solved, "allocated", expected, measured)
    off = 1.0 if same or front is None else front.off_by(table) or 1.0

    def stands(origin: Origin, plan: PrecisionPlan, kl: float) -> bool:
        searched = origin == "front" and sizes.deploy(plan) >= CLOSE * solved.bytes
        return kl < expected * (off if searched else 1.0)

    offered = [row for row in fitting if keeps(row[1], choices, constraints) and table.covers(row[1])]
    if not any(stands(origin, plan, kl) for origin, plan, _, kl in offered):
        return Best(solved, "allocated", expected, measured)
    origin, plan, metrics, kl = min(offered, key=lambda row: row[3])
    cost = table.total(plan)
    gap = max(0.0, cost - solved.cost) + solved.gap
    found = Allocation(plan, sizes.deploy(plan), cost, table.predicted(plan), gap)
    return Best(found, origin, kl, metrics, expected)


def _with_cache(
    origin: Origin,
    plan: PrecisionPlan,
    metrics: Mapping[str, float],
    sizes: Sizes,
    budget: int,
    choices: Sequence[Unit],
) -> tuple[Origin, PrecisionPlan, Mapping[str, float], float]:
    """A measured plan with its KV cache at the best widths for the room that is left; what was measured of
    just this plan, and its KL, to which a cache that took no part in it is added."""
    cache = [unit for unit in choices if unit.cache]
    if plan.rounds_cache or not cache:
        return origin, plan, metrics, metrics["kl"]
    found = knapsack([unit.options for unit in cache], budget - replace(sizes, context=0).deploy(plan))
    if found is None:
        return origin, plan, metrics, metrics["kl"]
    picked = list(zip(cache, found[0], strict=True))
    fitted = plan.with_cache({name: unit.bits[i] for unit, i in picked for name in unit.cache})
    if not fitted.rounds_cache:
        return origin, plan, metrics, metrics["kl"]
    named = replace(fitted, name=f"{plan.name} with a rounded KV cache")
    return origin, named, {}, metrics["kl"] + math.fsum(unit.costs[i] for unit, i in picked)


def keeps(plan: PrecisionPlan, choices: Sequence[Unit], constraints: Constraints) -> bool:
    """Whether a plan is one of those that these units offer."""
    bits_of = plan.resolve([name for unit in choices for name in unit.layers])
    blocks = [name for unit in choices for name in unit.cache]
    if plan.rounds_cache and not blocks:
        return False
    kv_of = plan.resolve_cache(blocks)
    if plan.embeddings != FULL and all(unit.layers or unit.cache for unit in choices):
        return False
    for unit in choices:
        if unit.cache:
            if not {kv_of[name] for name in unit.cache} <= set(unit.bits):
                return False
            continue
        widths = {bits_of[name] for name in unit.layers}
        offered = {Bits(b, constraints.inputs(b)) for b in unit.bits} if widths else set()
        if len(widths) > 1 or not widths <= offered or not (widths or plan.embeddings in unit.bits):
            return False
    return True


def _measured(
    table: SensitivityTable, front: Front | None
) -> Iterator[tuple[Origin, PrecisionPlan, Mapping[str, float]]]:
    """Plans that were measured whole."""
    if table.base != FULL_PRECISION:
        return
    rows = [(PrecisionPlan.uniform(bits), row) for bits, row in table.uniform.items()]
    rows += [(PrecisionPlan.parse(name), row) for name, row in table.whole.items()]
    yield from (("uniform", plan, row) for plan, row in rows)
    for point in front.points if front else ():
        yield "front", replace(point.plan, name=point.name), point.measured.to_dict()


def _expected(table: SensitivityTable, plan: PrecisionPlan, front: Front | None) -> float | None:
    """What KL a plan should show, see the module; None where nothing tells."""
    try:
        s, predicted = table.total(plan), table.predicted(plan)["kl"]
    except SensitivityError:
        return None
    untouched = all(bits.activations == FULL for bits in plan.resolve(table.layers).values())
    points = _mixed(table, front) if front and untouched else []
    added = table.cache_cost(plan) if table.cache and plan.rounds_cache else 0.0
    s -= added  # the front's plans leave the cache alone, and what it costs adds up
    if len(points) < 2 or s <= 0:
        return predicted
    sums, kls = np.log(points).T
    within = float(np.clip(math.log(s), sums[0], sums[-1]))
    kl = np.interp(within, sums, np.maximum.accumulate(kls)) + math.log(s) - within
    return math.exp(kl) + added


def _mixed(table: SensitivityTable, front: Front) -> list[tuple[float, float]]:
    """(s, KL) of the front's plans, ascending in s."""
    plans = [point for point in front.points if table.covers(point.plan)]
    points = sorted((table.total(point.plan), point.measured.kl) for point in plans)
    return [point for point in points if min(point) > 0]


def _same_measurement(table: SensitivityTable, front: Front) -> bool:
    """Whether both measured whole plans on the same, of the same weights."""
    there = [front.weights, front.group, *(front.conditions.get(k) for k in ("text", "dtype", *SIZE))]
    here = [table.fingerprint, table.group, *(table.data.get(k) for k in ("text", "dtype"))]
    return there == [*here, *(table.reference.get(k) for k in SIZE)]
