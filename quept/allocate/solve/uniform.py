"""What uniform plans would show at the same bytes: the yardstick of a mixed plan.

A budget hardly ever is the size of a uniform plan (all layers at b bits, embeddings at e). The yardstick is
then read off between two that were measured: log KL is linear in bytes between the best plan that fits and
the next larger one that is better. Among uniform plans, those two are neighbours on the measured Pareto front
of (bytes, KL). It is a strict yardstick: below 4 bits mixtures of two widths often fall short of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quept.plan import EMBEDDING_BITS, FULL, QUANTIZED_BITS, PrecisionPlan

from .constraints import FREE, AllocationError, megabytes

if TYPE_CHECKING:
    from quept.runtime.sizes import Sizes

# Graded widths give rows different bits: with one a plan is not uniform.
WHOLE_WIDTHS = tuple(bits for bits in FREE.embeddings if bits in EMBEDDING_BITS)
LOWEST = 1e-9  # nats; where a KL of zero stands on a logarithmic scale


@dataclass(frozen=True)
class AtEqualBytes:
    """kl: what is read off at the budget. below: the best uniform plan that fits; above: its neighbour, None
    where no larger one is better."""

    kl: float
    below: PrecisionPlan
    above: PrecisionPlan | None


def uniform_at_equal_bytes(
    sizes: Sizes,
    budget: int,
    measure: Callable[[PrecisionPlan], float],
    widths: tuple[int, ...] = QUANTIZED_BITS,
    embeddings: tuple[int | float, ...] = (FULL,),
) -> AtEqualBytes:
    """The KL of the best uniform-or-interpolated plan of `budget` deploy bytes. `measure` gives the KL of a
    plan and is only asked for the plans that can matter, given that more bits never make a plan worse.

    AllocationError where no uniform plan fits."""
    plans = {(b, e): PrecisionPlan.uniform(b, embeddings=e) for b in widths for e in embeddings}
    size = {at: sizes.deploy(plan) for at, plan in plans.items()}
    fitting = [at for at in plans if size[at] <= budget]
    if not fitting:
        least = min(size.values())
        raise AllocationError(
            f"no uniform plan fits: the smallest has {megabytes(least)}, the budget is {megabytes(budget)}"
        )
    corners = [at for at in fitting if not any(_more(other, at) for other in fitting)]
    below = min(corners, key=lambda at: measure(plans[at]))
    kl = measure(plans[below])
    if size[below] == budget:
        return AtEqualBytes(kl, plans[below], None)
    larger = sorted((at for at in plans if size[at] > budget), key=lambda at: size[at])
    above = next((at for at in larger if measure(plans[at]) < kl), None)
    if above is None:
        return AtEqualBytes(kl, plans[below], None)
    share = (budget - size[below]) / (size[above] - size[below])
    low, high = math.log(max(kl, LOWEST)), math.log(max(measure(plans[above]), LOWEST))
    return AtEqualBytes(math.exp(low + share * (high - low)), plans[below], plans[above])


def _more(one: tuple[int, int | float], other: tuple[int, int | float]) -> bool:
    """Whether the first has at least the second's bits everywhere, and is not the same. Of embeddings at a
    graded width and at a whole one neither has."""
    alike = isinstance(one[1], float) == isinstance(other[1], float)
    return one != other and alike and one[0] >= other[0] and one[1] >= other[1]
