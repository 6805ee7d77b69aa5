"""The best plan for a budget as it is asked for: in bytes, or as people say it, with room for a context or
without.

    found, budget = asked("120 MB with 2,048 tokens", table, sizes)
    found.allocation.plan.kv                   # the width of the KV cache that costs least within all of it

The keys and values of the context get every width in turn whose cost the table holds, the weights what is
left, and of these plans the one of the smallest sum is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from quept.plan import FULL

from .best import Best, best
from .budget import parse_budget, with_context
from .constraints import FREE, AllocationError, Constraints, megabytes
from .solver import path

if TYPE_CHECKING:
    from quept.runtime.sizes import Sizes

    from ..front import Front
    from ..sensitivity.table import SensitivityTable


def asked(
    budget: int | str,
    table: SensitivityTable,
    sizes: Sizes,
    constraints: Constraints = FREE,
    front: Front | None = None,
    within: Callable[[int], int] = int,
) -> tuple[Best, int]:
    """Returns the best plan, and the budget in bytes, the context's included. within: what is made of that
    of the weights. AllocationError where nothing fits, with the range of what can be had."""
    words, tokens = with_context(budget) if isinstance(budget, str) else (budget, 0)
    room = parse_budget(words, table, sizes, constraints) if isinstance(words, str) else words
    if not tokens:
        room = within(room)
        return best(table, sizes, room, constraints, front), room
    if not sizes.token:
        raise AllocationError(
            "a budget with a context counts weights in memory and a KV cache: this one has none, leave it out"
        )
    found = []
    for bits in sorted({FULL, *table.kv} & set(sizes.token)):
        left, cost = room - tokens * sizes.token[bits], table.kv.get(bits, 0.0)
        try:
            one = best(table, sizes, within(left), constraints, front)
        except AllocationError:
            continue
        plan = replace(one.allocation.plan, kv=bits)
        found.append((one.allocation.cost + cost, bits, one, plan))
    if not found:
        least = path(table, sizes, constraints).bytes
        needed = least + tokens * min(sizes.token[bits] for bits in (FULL, *table.kv) if bits in sizes.token)
        raise AllocationError(
            f"the smallest plan that these constraints allow takes {megabytes(needed)} with {tokens:,} "
            f"tokens; the budget is {megabytes(room)}"
        )
    cost, bits, one, plan = min(found, key=lambda row: row[:2])
    if bits == FULL:
        return one, room
    predicted = table.predicted(plan) if one.allocation.predicted else {}
    kl = predicted.get("kl") if one.kl is None else one.kl + table.kv[bits]
    allocation = replace(one.allocation, plan=plan, cost=cost, predicted=predicted)
    return replace(one, allocation=allocation, kl=kl, measured={}), room
