"""A budget as a person types it, in bytes.

    60 MB, 0.06 GB     deploy bytes; 1 MB is 10^6 bytes, 1 MiB 2^20
    3.2 bits           per parameter of the model: bytes x 8 / parameters
    40 %               of the bytes of full precision
    2 % worse          the smallest budget whose allocated plan is predicted to keep perplexity, or the
                       accuracy of a model that sees, within 2 % of full precision's
    1 point            the same within one point of its accuracy
    120 MB with 2,048 tokens, or with context 2048: weights, and the keys and values of so many tokens; "%" is
                       then of both (see `with_context`; `asked` finds the widths of the KV cache)

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
POINTS = ("point", "points", "point of accuracy", "points of accuracy")
PERCENT, WORSE = ("%", "% of full precision"), ("% worse",)
EXAMPLES = "write it like 60 MB, 3.2 bits, 40 % or 2 % worse"


def with_context(text: str) -> tuple[str, int]:
    """Returns a budget without its context, and the tokens of that; 0 where it names none."""
    said = re.fullmatch(
        r"\s*(?:fits\s+(?:in\s+)?)?(.+?)(?:\s+with\s+(?:a\s+)?(?:context\s+(?:of\s+)?)?([0-9][0-9,]{0,11})"
        r"(?:\s+tokens?)?)?\s*",
        text,
        re.IGNORECASE,
    )
    if not said or len(text) > LONGEST:
        return text, 0
    return said[1], int((said[2] or "0").replace(",", ""))


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
    if sign == "-" or (not amount and unit not in (*WORSE, *POINTS)):
        raise AllocationError(f"a budget must be more than nothing; got {text!r}")
    if unit in (*WORSE, *POINTS):
        return _within(amount / 100, unit in POINTS, table, sizes, constraints)
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


def _within(
    share: Fraction, points: bool, table: SensitivityTable, sizes: Sizes, constraints: Constraints
) -> int:
    """The fewest bytes whose allocated plan is predicted to have a score at most a share worse than full
    precision's; points: of accuracy, not of what it is.

    Plans of the path, each the best of its own bytes, bracket it; allocations halve the bracket to the byte.
    """
    if not table.reference:
        raise AllocationError("a rule of thumb predicts nothing: give a size, like 60 MB")
    score, full = table.score, table.reference[table.score]
    if points and score != "top1":
        raise AllocationError("the table predicts perplexity, not accuracy: write it like 2 % worse")
    sign, scale = (1, full) if score == "ppl" else (-1, 1.0 if points else full)

    def lost(plan: PrecisionPlan) -> float:
        return sign * (table.predicted(plan)[score] - full) / scale

    def keeps(plan: PrecisionPlan) -> bool:
        return lost(plan) <= float(share) + 1e-12

    way = path(table, sizes, constraints)
    best = way.plan(len(way.steps))
    if not keeps(best):
        reachable = float(Context(prec=2, rounding=ROUND_CEILING).create_decimal(100 * lost(best)))
        what = "perplexity" if score == "ppl" else "accuracy"
        unit = " points" if points else " %"
        asked = f"{float(100 * share):g}{unit}"
        raise AllocationError(
            f"no plan that these constraints allow is predicted to stay within {asked} of full precision's "
            f"{what}: the best is {reachable:g}{unit} worse"
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
