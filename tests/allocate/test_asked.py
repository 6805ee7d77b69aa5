"""Budgets with room for a context, and those of accuracy."""

from dataclasses import replace

import pytest

from quept.allocate.solve.asked import asked
from quept.allocate.solve.best import best
from quept.allocate.solve.budget import parse_budget, with_context
from quept.allocate.solve.constraints import AllocationError
from quept.plan import FULL
from tests.allocate.test_solve import sizes, table

TOKEN = {FULL: 8, 8: 5, 4: 3}
WHOLE = {f"W16KV{b}": {"kl": kl, "ppl": 21.0, "same_top": 0.9} for b, kl in ((8, 1e-9), (4, 9.0))}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("120 MB", ("120 MB", 0)),
        ("120 MB with 2,048 tokens", ("120 MB", 2048)),
        ("fits in 1.2 GB with a context of 4096", ("1.2 GB", 4096)),
        ("fits 60 MB with context 512 tokens", ("60 MB", 512)),
        ("2 % worse", ("2 % worse", 0)),
    ],
)
def test_a_context_is_read(text, found):
    assert with_context(text) == found


def test_keys_and_values_take_their_room_at_the_width_that_costs_least():
    known, held = table(whole=WHOLE), replace(sizes(), token=TOKEN)
    budget = 5000
    found, room = asked(f"{budget} B with 200 tokens", known, held)
    assert room == budget and found.allocation.plan.kv == 8
    assert held.deploy(found.allocation.plan) <= budget - 200 * TOKEN[8]
    alone = best(known, held, budget - 200 * TOKEN[8])
    assert found.allocation.plan.resolve(known.layers) == alone.allocation.plan.resolve(known.layers)
    with pytest.raises(AllocationError, match="takes .* with 9,999 tokens; the budget is"):
        asked("5000 B with 9999 tokens", known, held)
    with pytest.raises(AllocationError, match="this one has none"):
        asked("5000 B with 200 tokens", known, sizes())


def test_points_of_accuracy_are_for_models_that_see():
    with pytest.raises(AllocationError, match="predicts perplexity"):
        parse_budget("1 point", table(), sizes())
    text = table()
    scores = {
        b: {"kl": r["kl"], "top1": 0.9 - 0.1 * 0.3 ** (b - 2), "same_top": 0.9}
        for b, r in text.uniform.items()
    }
    data = {"text": "clothes", "tokens": 500, "unit": "pictures", "dtype": "float32"}
    known = replace(text, data=data, reference={"top1": 0.9, "tokens": 1000}, uniform=scores)
    few, many = (parse_budget(words, known, sizes()) for words in ("0.1 points", "2 points of accuracy"))
    assert many < few
    assert best(known, sizes(), many).allocation.predicted["top1"] >= 0.88 - 1e-9
    assert parse_budget("1 % worse", known, sizes()) == parse_budget("0.9 points", known, sizes())
