"""The best plan for a budget as it is asked for: in bytes, or as people say it, with room for a context or
without.

    found, budget = asked("120 MB with 2,048 tokens", table, sizes)
    found.allocation.plan.resolve_cache(sizes.cached)       # the widths of the KV cache that cost least

With a context, its keys and values count in the sizes, and the solver weighs bits of a block's cache against
bits of a layer; where the table knows the cache as a whole only, it gets one width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from quept.plan import PrecisionPlan

from .best import Best, best
from .budget import parse_budget, with_context
from .constraints import FREE, AllocationError, Constraints

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
    capped: bool = False,
) -> tuple[Best, int]:
    """Returns the best plan, and the budget in bytes, the context's included. capped: a budget above full
    precision counts as that. AllocationError where nothing fits, with the smallest that can be had."""
    words, tokens = with_context(budget) if isinstance(budget, str) else (budget, 0)
    if tokens:
        if not sizes.token:
            raise AllocationError(
                "a budget with a context counts weights in memory and a KV cache: this one has none, leave "
                "it out"
            )
        sizes = replace(sizes, context=tokens)
    room = parse_budget(words, table, sizes, constraints) if isinstance(words, str) else words
    if capped:
        room = min(room, sizes.deploy(PrecisionPlan.full()))
    return best(table, sizes, room, constraints, front), room
