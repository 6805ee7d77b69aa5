"""What people type for a budget, in bytes; and what strangers type, refused with a sentence."""

import pytest

from quept.allocate import SensitivityError
from quept.allocate.solve.budget import parse_budget
from quept.allocate.solve.solver import AllocationError, Constraints, allocate, path
from quept.plan import PrecisionPlan
from tests.allocate.test_solve import LAYERS, Q0, sizes, table

FULL_BYTES = sizes().deploy(PrecisionPlan.full())
MODEL = sizes().parameters


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4321 B", 4321),
        ("4321 bytes", 4321),
        ("0.004 MB", 4000),
        ("4kb", 4000),
        ("  4.5\u00a0KB ", 4500),
        ("4 KiB", 4096),
        ("0.00390625 MiB", 4096),
        ("0.0000043 GB", 4300),
        ("0.0000000043TB", 4300),
        ("at most .004 MB", 4000),
        ("<4 kB", 4000),
        ("≤ 4. kB", 4000),
        ("3.2 bits", int(MODEL * 3.2 / 8)),
        ("4bpw", MODEL // 2),
        ("4 bits per parameter", MODEL // 2),
        ("40 %", FULL_BYTES * 40 // 100),
        ("40 percent", FULL_BYTES * 40 // 100),
        ("100% of full precision", FULL_BYTES),
        ("900 %", 9 * FULL_BYTES),
    ],
)
def test_a_budget_is_read(text, count):
    assert parse_budget(text, table(), sizes()) == count


def test_fractions_lose_nothing_to_floating_point():
    for megabytes in range(1, 100):
        text = f"0.00{megabytes:02}01 MB"
        assert parse_budget(text, table(), sizes()) == megabytes * 100 + 1, text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a budget is needed: write it like 60 MB"),
        ("   ", "a budget is needed"),
        (None, "a budget is needed"),
        (60_000_000, "a budget is needed"),
        ("4000", "'4000' has no unit"),
        ("4 bananas", "'bananas' is no unit"),
        ("4 MB worse", "'mb worse' is no unit"),
        ("much", "'much' is no budget: write it like"),
        ("nan MB", "is no budget"),
        ("inf MB", "is no budget"),
        ("1e3 kB", "is no budget"),
        ("4 5 MB", "is no budget"),
        ("1.2.3 MB", "is no budget"),
        ("٤ MB", "is no budget"),
        ("0,004 MB", "is no budget.*; write fractions with a point"),
        ("<script>alert(1)</script>", "is no budget"),
        ("-4 kB", "more than nothing"),
        ("- 2 % worse", "more than nothing"),
        ("0 MB", "more than nothing"),
        ("0.0001 B", "more than nothing"),
        ("60 GB", "'60 GB' is .* times full precision, which has 0.0 MB"),
        ("9" * 50 + " TB", "times full precision"),
        ("2000 bits", "times full precision"),
        ("9" * 61, "too long for a budget"),
        ("4 kB" + " " * 100, "too long for a budget"),
    ],
)
def test_what_is_no_budget_is_refused_in_words(text, words):
    with pytest.raises(AllocationError, match=words):
        parse_budget(text, table(), sizes())


@pytest.mark.parametrize("said", [{}, {"pinned": {Q0: 3}, "activations": "as weights"}])
@pytest.mark.parametrize("text", ["0.6 % worse", "at most 1 % worse", "1.5 percent worse", "5% worse"])
@pytest.mark.parametrize("seed", range(3))
def test_percent_worse_is_the_smallest_budget_that_keeps_it(said, text, seed):
    costs, size, constraints = table(seed), sizes(), Constraints(**said)
    limit = 20 * (1 + float(text.removeprefix("at most").split("%")[0].split()[0]) / 100)
    budget = parse_budget(text, costs, size, constraints)
    found = allocate(costs, size, budget, constraints)
    assert found.predicted["ppl"] <= limit * (1 + 1e-9) and found.bytes == budget
    least = path(costs, size, constraints).bytes
    if budget > least:
        for smaller in {budget - 1, (budget + least) // 2, least}:
            assert allocate(costs, size, smaller, constraints).predicted["ppl"] > limit


def test_a_loose_limit_is_met_by_the_smallest_plan():
    assert parse_budget("100000 % worse", table(), sizes()) == path(table(), sizes()).bytes


def test_more_than_any_plan_keeps_is_refused_with_the_best_there_is():
    constraints = Constraints(widths=(2,))
    with pytest.raises(AllocationError, match="within 0.01 % of .* perplexity: the best is ") as refused:
        parse_budget("0.01 % worse", table(), sizes(), constraints)
    best = str(refused.value).split("the best is ")[1]  # "6.5 % worse", and that can be had
    assert parse_budget(best, table(), sizes(), constraints) > 0


def test_a_table_that_predicts_nothing_says_so():
    with pytest.raises(SensitivityError, match="measure it again"):
        parse_budget("2 % worse", table(uniform={}), sizes())


def test_constraints_that_cannot_be_met_are_told_here_too():
    with pytest.raises(AllocationError, match="pinned to 2 bits, but has a floor of 4"):
        parse_budget("2 % worse", table(), sizes(), Constraints(floor={"*": 4}, pinned={LAYERS[1]: 2}))
