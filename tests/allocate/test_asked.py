"""Budgets with room for a context, and those of accuracy."""

from contextlib import suppress
from dataclasses import replace
from itertools import product

import pytest

from quept.allocate.solve.asked import asked
from quept.allocate.solve.best import best
from quept.allocate.solve.budget import parse_budget, with_context
from quept.allocate.solve.constraints import AllocationError, Constraints
from quept.allocate.solve.solver import allocate
from quept.plan import FULL, PrecisionPlan
from tests.allocate.test_solve import sizes, table

TOKEN = {FULL: 8, 8: 6, 4: 4}  # of both blocks
BLOCKS = ("model.layers.0", "model.layers.1")
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
    known, held = table(whole=WHOLE), replace(sizes(), token=TOKEN, cached=BLOCKS)
    budget = 5000
    found, room = asked(f"{budget} B with 400 tokens", known, held)
    assert room == budget and found.allocation.plan.kv == 8 and not found.allocation.plan.kv_blocks
    assert held.deploy(found.allocation.plan) <= budget - 400 * TOKEN[8]
    alone = best(known, held, budget - 400 * TOKEN[8])
    assert found.allocation.plan.resolve(known.layers) == alone.allocation.plan.resolve(known.layers)
    with pytest.raises(AllocationError, match="has .* MB with 9,999 tokens; the budget is"):
        asked("5000 B with 9999 tokens", known, held)
    with pytest.raises(AllocationError, match="this one has none"):
        asked("5000 B with 200 tokens", known, sizes())


def by_block(costly=0):
    """A table that holds what each block's cache costs, that of one block a hundred times the other's."""
    rows = {b: {8: 1e-6, 4: 1e-4, FULL: 0.0} for b in BLOCKS}
    rows[BLOCKS[costly]] = {bits: 100 * cost for bits, cost in rows[BLOCKS[costly]].items()}
    return table(cache=rows, uniform={}), replace(sizes(), token=TOKEN, cached=BLOCKS)


@pytest.mark.parametrize("costly", [0, 1])
def test_a_block_whose_cache_is_sensitive_keeps_more_bits_of_it(costly):
    known, held = by_block(costly)
    found, room = asked("5000 B with 400 tokens", known, held)
    plan = found.allocation.plan
    widths = plan.resolve_cache(BLOCKS)
    assert widths[BLOCKS[costly]] > widths[BLOCKS[1 - costly]]
    counted = replace(held, context=400)
    assert found.allocation.bytes == counted.deploy(plan) == held.deploy(plan) + held.cache(plan, 400) <= room
    assert found.allocation.cost == pytest.approx(known.total(plan))


def test_bits_of_the_cache_and_of_the_weights_are_weighed_like_trying_everything():
    known, held = by_block()
    counted, room = replace(held, context=400), 5000
    found = allocate(known, counted, room, Constraints(embeddings=(FULL,)))
    costs = []
    for widths in product(TOKEN, repeat=len(BLOCKS)):
        fixed = PrecisionPlan.full().with_cache(dict(zip(BLOCKS, widths, strict=True)))
        with suppress(AllocationError):
            left = room - counted.cache(fixed, 400)
            weights = allocate(known, held, left, Constraints(embeddings=(FULL,)))
            costs.append(weights.cost + known.cache_cost(fixed))
    assert found.cost == pytest.approx(min(costs))


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ({"pinned": {"kv": 4}}, [4, 4]),
        ({"pinned": {"kv": 8, "kv:model.layers.1": 4}}, [8, 4]),
        ({"floor": {"kv:model.layers.?": 8}, "ceiling": {"kv": 8}}, [8, 8]),
    ],
)
@pytest.mark.parametrize("words", ["5000 B with 200 tokens", "5000 B"])
def test_limits_speak_of_the_cache_and_of_one_block_of_it(limits, wanted, words):
    known, held = by_block()
    plan = asked(words, known, held, Constraints(**limits))[0].allocation.plan
    assert list(plan.resolve_cache(BLOCKS).values()) == wanted
    for key, says in (("kv:model.layers.9", "did you mean 'kv:model"), ("kvs", "fits no layer")):
        with pytest.raises(AllocationError, match=says):
            asked(words, known, held, Constraints(pinned={key: 8}))
    with pytest.raises(AllocationError, match="there is no KV cache here"):
        asked("5000 B", known, sizes(), Constraints(pinned={"kv": 8}))


def test_a_measured_plan_gets_the_best_cache_for_the_room_that_its_weights_leave():
    known, held = by_block()
    plan = PrecisionPlan.uniform(4, embeddings=8)
    rows = {block: {bits: 1e-9 * cost for bits, cost in row.items()} for block, row in known.cache.items()}
    good = {"W4E8": {"kl": 1e-12, "ppl": 20.1, "same_top": 0.9}}
    known = replace(known, uniform=table().uniform, whole=good, cache=rows)
    room = held.deploy(plan) + 400 * TOKEN[8]
    found, _ = asked(f"{room} B with 400 tokens", known, held)
    kept = found.allocation.plan
    assert found.origin == "uniform" and kept.resolve(known.layers) == plan.resolve(known.layers)
    assert kept.rounds_cache and "with a rounded KV cache" in kept.name and not found.measured
    assert found.kl == pytest.approx(1e-12 + known.cache_cost(kept)) and found.allocation.bytes <= room
    assert "measured" not in found.describe()


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
