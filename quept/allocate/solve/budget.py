"""A budget as a person types it, in bytes.

    60 MB, 0.06 GB     deploy bytes; 1 MB is 10^6 bytes, 1 MiB 2^20
    3.2 bits           per parameter of the model: bytes x 8 / parameters
    40 %               of the bytes of full precision
    2 % worse          the smallest budget whose allocated plan is predicted to keep perplexity within 2 %
                       of full precision's

Capitals, blanks and an "at most" in front do not matter. Fractions of a byte are cut off.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from decimal import ROUND_CEILING, Context
from fractions import Fraction
from typing import TYPE_CHECKING

from quept.plan import PrecisionPlan

from .constraints import FREE, AllocationError, Constraints, megabytes
from .solver import allocate, path

if TYPE_CHECKING:
    from quept.runtime.sizes import Sizes

    from ..sensitivity.table import SensitivityTable

LONGEST = 60  # characters; a stranger's text is not worth more
MOST = 10  # times full precision: whoever types that meant another unit
BYTES = {"b": 1, "byte": 1, "bytes": 1} | {
    f"{prefix}{'i' if base == 1024 else ''}b": base**power
    for power, prefix in enumerate("kmgt", 1)
    for base in (1000, 1024)
}
BITS = ("bit", "bits", "bpw", "bits per weight", "bits per parameter", "bits/parameter")
PERCENT, WORSE = ("%", "% of full precision"), ("% worse",)
EXAMPLES = "write it like 60 MB, 3.2 bits, 40 % or 2 % worse"


def parse_budget(text: str, table: SensitivityTable, sizes: Sizes, constraints: Constraints = FREE) -> int:
    """Deploy bytes. AllocationError says what to type instead, or that "% worse" asks for more than any plan
    is predicted to give; SensitivityError, that the table predicts nothing. A budget too small for any plan
    is read all the same: `allocate` refuses it."""
    if not isinstance(text, str) or not text.strip():
        raise AllocationError(f"a budget is needed: {EXAMPLES}")
    if len(text) > LONGEST:
        raise AllocationError(f"that is too long for a budget: {EXAMPLES}")
    words = " ".join(text.lower().replace("percent", "%").replace("per cent", "%").split())
    said = re.fullmatch(
        r"(?:at most |<=? ?|≤ ?)?([+-]?) ?([0-9]+(?:\.[0-9]*)?|\.[0-9]+) ?([a-z%][a-z%/ ]*)?", words
    )
    if not said:
        comma = "; write fractions with a point" if re.search(r"[0-9],[0-9]", words) else ""
        raise AllocationError(f"{text!r} is no budget: {EXAMPLES}{comma}")
    sign, number, unit = said.groups()
    amount = Fraction(number)
    if sign == "-" or (not amount and unit not in WORSE):
        raise AllocationError(f"a budget must be more than nothing; got {text!r}")
    if unit in WORSE:
        return _within(amount / 100, table, sizes, constraints)
    full = sizes.deploy(PrecisionPlan.full())
    if unit in BYTES:
        budget = amount * BYTES[unit]
    elif unit in BITS:
        budget = amount * sizes.parameters / 8
    elif unit in PERCENT:
        budget = amount * full / 100
    else:
        what = f"{unit!r} is no unit" if unit else f"{text!r} has no unit"
        raise AllocationError(f"{what}: {EXAMPLES}")
    if budget > MOST * full:
        times = f"{float(budget / full):,.0f} times full precision"
        raise AllocationError(f"{text!r} is {times}, which has {megabytes(full)}; {EXAMPLES}")
    if budget < 1:
        raise AllocationError(f"a budget must be more than nothing; got {text!r}")
    return math.floor(budget)


def _within(share: Fraction, table: SensitivityTable, sizes: Sizes, constraints: Constraints) -> int:
    """The fewest bytes whose allocated plan is predicted to have at most (1 + share) times the perplexity of
    full precision.

    Plans of the path, each the best of its own bytes, bracket it; allocations halve the bracket to the byte.
    """
    limit = table.reference["ppl"] * float(1 + share) * (1 + 1e-12)
    way = path(table, sizes, constraints)

    def keeps(plan: PrecisionPlan) -> bool:
        return table.predicted(plan)["ppl"] <= limit

    best = way.plan(len(way.steps))
    if not keeps(best):
        least = 100 * (table.predicted(best)["ppl"] / table.reference["ppl"] - 1)
        reachable = float(Context(prec=2, rounding=ROUND_CEILING).create_decimal(least))
        raise AllocationError(
            f"no plan that these constraints allow is predicted to stay within {float(100 * share):g} % of "
            f"full precision's perplexity: the best is {reachable:g} % worse"
        )
    count = bisect_left(range(len(way.steps)), True, key=lambda count: keeps(way.plan(count)))
    enough = way.steps[count - 1].bytes if count else way.bytes
    short = enough if not count else way.steps[count - 2].bytes if count > 1 else way.bytes
    while enough - short > 1:
        middle = (enough + short) // 2
        found = allocate(table, sizes, middle, constraints)
        if keeps(found.plan):
            enough = found.bytes
        else:
            short = middle
    return enough
