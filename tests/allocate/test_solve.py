"""The allocated plan is the best there is, to the byte; the slider's path is its relaxation."""

import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quept.allocate import SensitivityTable
from quept.allocate.solve.constraints import tie_groups, tied
from quept.allocate.solve.knapsack import knapsack
from quept.allocate.solve.solver import (
    AllocationError,
    Constraints,
    allocate,
    path,
)
from quept.models.families import FAMILIES
from quept.models.layout import Block, ModelLayout
from quept.numerics.grid import quantized_bytes
from quept.plan import FULL, QUANTIZED_BITS, WEIGHT_BITS, Bits, PrecisionPlan
from quept.runtime.sizes import Sizes

SHIPPED = Path(__file__).parents[2] / "assets/smollm2-135m/weight-only/sensitivity.json"
SMOLLM2_EMBEDDINGS = {4: 0.126, 5: 0.024, 6: 0.0075, 7: 0.0015, 8: 0.00027}  # measured KL
SHAPES = {"q": (576, 576), "k": (192, 576), "v": (192, 576), "o": (576, 576)} | {
    "gate": (1536, 576),
    "up": (1536, 576),
    "down": (576, 1536),
}

# The knapsack on figures of every kind, against the slow and obvious.

FIGURES = {
    "unrelated": lambda r: (r.randint(0, 40), r.random()),
    "few values, many ties": lambda r: (r.randint(0, 6), float(r.randint(0, 4))),
    "falling": lambda r: (b := r.randint(1, 1000), 1e4 / b),
    "cost is bytes": lambda r: (b := r.randint(1, 1000), 1000.0 - b),
    "nearly": lambda r: (b := r.randint(1, 1000), 1000.0 - b + r.random()),
    "ten magnitudes": lambda r: (r.randint(1, 50), 10 ** r.uniform(-9, 2)),
    "gains": lambda r: (r.randint(1, 50), r.uniform(-1, 1)),
}


def drawn(kind: str, r: random.Random, units: int, options: int) -> tuple[list, int]:
    """Random units of this kind, and a budget from just too small to just too large."""
    made = [[FIGURES[kind](r) for _ in range(r.randint(1, options))] for _ in range(units)]
    ends = [sum(end(b for b, _ in unit) for unit in made) for end in (min, max)]
    return made, r.randint(ends[0] - 1, ends[1] + 1)


def totals(units, picked) -> tuple[int, float]:
    chosen = [unit[i] for unit, i in zip(units, picked, strict=True)]
    return sum(b for b, _ in chosen), math.fsum(c for _, c in chosen)


def every_choice(units, budget: int) -> float | None:
    """The least cost, by trying everything."""
    ranges = itertools.product(*(range(len(unit)) for unit in units))
    return min((c for b, c in (totals(units, picked) for picked in ranges) if b <= budget), default=None)


def every_sum(units, budget: int) -> float | None:
    """The least cost, by the least cost of every sum of bytes up to the budget."""
    least = np.full(max(budget, 0) + 1, np.inf)
    least[0] = 0.0
    for unit in units:
        grown = np.full_like(least, np.inf)
        for more, cost in unit:
            if more < len(least):
                grown[more:] = np.minimum(grown[more:], least[: len(least) - more] + cost)
        least = grown
    return float(least.min()) if budget >= 0 and np.isfinite(least).any() else None


@pytest.mark.parametrize("kind", FIGURES)
@pytest.mark.parametrize(("units", "oracle", "draws"), [(5, every_choice, 80), (30, every_sum, 6)])
def test_the_knapsack_is_exact(kind, units, oracle, draws):
    r = random.Random(units)
    for _ in range(draws):
        made, budget = drawn(kind, r, r.randint(1, 5) if units == 5 else units, 5)
        best, found = oracle(made, budget), knapsack(made, budget)
        assert (found is None) == (best is None)
        if found is not None:
            taken, cost = totals(made, found[0])
            assert taken <= budget and found[1] == 0
            assert cost == pytest.approx(best, rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("kind", FIGURES)
def test_with_too_few_states_the_gap_still_holds_the_best(kind):
    r = random.Random(1)
    for _ in range(40):
        made, budget = drawn(kind, r, 12, 6)
        best, found = every_sum(made, budget), knapsack(made, budget, states=(1,))
        if found is not None:
            taken, cost = totals(made, found[0])
            assert taken <= budget and cost - found[1] <= best + 1e-9 and best <= cost + 1e-9


def test_more_states_close_a_gap():
    r, few, many = random.Random(5), [], []
    for _ in range(20):
        made, budget = drawn("nearly", r, 12, 6)
        few.append(knapsack(made, budget, states=(1,))[1])
        many.append(knapsack(made, budget, states=(1, 100_000))[1])
    assert sum(few) > 0 and sum(many) == 0


def test_hostile_figures_end_with_an_honest_gap():
    """Only even sizes, an odd budget and cost = bytes: no bound can tell the states apart."""
    r = random.Random(0)
    made = [[(b := 2 * r.randint(10**5, 10**6), 1e7 - b) for _ in range(7)] for _ in range(60)]
    budget = sum(sum(b for b, _ in unit) // 7 for unit in made) // 2 * 2 + 1
    picked, gap = knapsack(made, budget, states=(64, 512))
    taken, cost = totals(made, picked)
    least_possible = 60 * 1e7 - budget
    assert taken <= budget and cost - gap <= least_possible + 1 and gap < 1e-4 * cost


# Allocation on the real classes, against every plan there is.

LAYERS = Q0, K0, DOWN0, Q1 = (
    "model.layers.0.attn.q",
    "model.layers.0.attn.k",
    "model.layers.0.mlp.down",
    "model.layers.1.attn.q",
)
ROWS = {Q0: 8, K0: 4, DOWN0: 6, Q1: 8}
OFFERED = {"widths": (2, 3, 4, 8), "embeddings": (4, 6, FULL)}


def sizes() -> Sizes:
    def at(rows, columns):
        packed = {bits: quantized_bytes(rows, columns, bits, 32) for bits in QUANTIZED_BITS}
        return packed | {FULL: 2 * rows * columns}

    weights = {name: 64 * rows for name, rows in ROWS.items()}
    layers = {name: at(rows, 64) for name, rows in ROWS.items()}
    return Sizes(layers, weights, at(40, 32), 100, sum(weights.values()) + 40 * 32 + 50)


def table(seed: int = 0, **changes) -> SensitivityTable:
    """Random costs. Measured ones do not always fall with the width: of these, every third row does not."""
    r = random.Random(seed)

    def row(widths, scale=1.0):
        costs = sorted((scale * 10 ** r.uniform(-4, 0) for _ in widths), reverse=True)
        if r.random() < 1 / 3:
            r.shuffle(costs)
        return dict(zip(widths, costs, strict=True))

    parts = {
        "data": {"text": "words", "tokens": 512, "context": 512, "dtype": "float32"},
        "reference": {"ppl": 20.0, "tokens": 4096, "context": 512},
        "layers": {name: row(QUANTIZED_BITS) for name in LAYERS},
        "embeddings": row((4, 5, 6, 7, 8), 0.3),
        "activations": {name: row((4, 5, 6, 7, 8), 0.2) for name in LAYERS},
        "uniform": {
            bits: {"kl": 4.0**-bits, "ppl": 20 * math.exp(4.0**-bits), "same_top": 1 - 2.0**-bits}
            for bits in QUANTIZED_BITS
        },
    }
    return SensitivityTable("tiny", "f" * 64, 32, "layer", **(parts | changes))


def quantized(w, *layers) -> bool:
    return all(w[name] != FULL for name in layers or LAYERS)


CASES = {
    "free": ({}, quantized),
    "16 on offer": ({"widths": (2, 3, 4, 8, FULL)}, lambda w: True),
    "a pin": ({"pinned": {Q0: 8}}, lambda w: quantized(w) and w[Q0] == 8),
    "pins past the widths, the last counts": (
        {"pinned": {"*.layers.0.*": 16, K0: 2, "embeddings": 6}},
        lambda w: (w[Q0], w[K0], w[DOWN0], w["embeddings"]) == (16, 2, 16, 6) and quantized(w, Q1),
    ),
    "floors, the last counts": (
        {"floor": {"*": 4, "*.down": 3, "embeddings": 6}},
        lambda w: quantized(w) and min(w[Q0], w[K0], w[Q1]) >= 4 and w[DOWN0] >= 3 and w["embeddings"] >= 6,
    ),
    "ceilings": (
        {"ceiling": {"*.attn.?": 3, "embeddings": 8}},
        lambda w: quantized(w) and max(w[Q0], w[K0], w[Q1]) <= 3 and w["embeddings"] <= 8,
    ),
    "a tie": ({"ties": ((Q0, K0),)}, lambda w: quantized(w) and w[Q0] == w[K0]),
    "ties that share a layer, with a pin and a floor": (
        {"ties": ((Q0, K0), (K0, DOWN0)), "pinned": {DOWN0: 4}, "floor": {Q0: 3}},
        lambda w: quantized(w) and w[Q0] == w[K0] == w[DOWN0] == 4,
    ),
    "inputs at 6 bits": ({"activations": 6}, quantized),
    "inputs as weights": (
        {"widths": (2, 4, 8, FULL), "activations": "as weights"},
        lambda w: 3 not in w.values(),
    ),
    "inputs as weights, tied": (
        {"activations": "as weights", "ties": ((Q0, Q1),)},
        lambda w: quantized(w) and w[Q0] == w[Q1],
    ),
}


def plans_of(constraints: Constraints, allowed) -> list[PrecisionPlan]:
    """Every plan whose widths, {layer or "embeddings": bits}, are allowed."""
    plans = []
    for widths in itertools.product((2, 3, 4, 8, FULL), repeat=len(LAYERS)):
        for embeddings in (4, 6, FULL):
            w = dict(zip(LAYERS, widths, strict=True))
            if allowed(w | {"embeddings": embeddings}):
                rules = {name: Bits(bits, constraints.inputs(bits)) for name, bits in w.items()}
                plans.append(PrecisionPlan.of(rules, embeddings=embeddings))
    return plans


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(2))
def test_the_allocated_plan_is_the_best_of_all_that_fit(case, seed):
    said, allowed = CASES[case]
    constraints, costs, size = Constraints(**(OFFERED | said)), table(seed), sizes()
    scored = sorted((size.deploy(plan), costs.total(plan)) for plan in plans_of(constraints, allowed))
    for place in range(0, len(scored), len(scored) // 6 + 1):
        budget = scored[place][0]
        found = allocate(costs, size, budget, constraints)
        assert found.cost == pytest.approx(min(s for b, s in scored if b <= budget), rel=1e-12)
        assert found.cost == pytest.approx(costs.total(found.plan), rel=1e-12) and found.gap == 0
        assert found.bytes == size.deploy(found.plan) <= budget
        assert found.predicted == costs.predicted(found.plan)
        bits = found.plan.resolve(LAYERS)
        assert allowed({n: b.weights for n, b in bits.items()} | {"embeddings": found.plan.embeddings})
        assert all(b.activations == constraints.inputs(b.weights) for b in bits.values())
    with pytest.raises(AllocationError, match="the smallest plan that these constraints allow has .* MB"):
        allocate(costs, size, scored[0][0] - 1, constraints)


def test_inputs_as_weights_have_at_least_4_bits():
    assert [Constraints(activations="as weights").inputs(bits) for bits in (2, 3, 4, 7, 16)] == [
        4,
        4,
        4,
        7,
        16,
    ]


def test_changes_around_another_plan_may_be_gains():
    r = random.Random(3)
    rows = {name: {bits: r.uniform(-1, 1) for bits in WEIGHT_BITS} for name in LAYERS}
    whole = {"base": {"kl": 3.0, "ppl": 40.0, "same_top": 0.5}}
    costs = table(layers=rows, embeddings={}, uniform={}, whole=whole, base="W4")
    scored = [
        (sizes().deploy(plan), costs.total(plan))
        for plan in plans_of(Constraints(), lambda w: w["embeddings"] == FULL)
    ]
    budget = sorted(scored)[len(scored) // 2][0]
    found = allocate(costs, sizes(), budget, Constraints(widths=(2, 3, 4, 8, FULL)))
    assert found.cost == pytest.approx(min(s for b, s in scored if b <= budget)) and found.cost < 0
    assert found.predicted == costs.predicted(found.plan)


def test_embeddings_that_were_not_measured_stay_unless_they_are_pinned():
    costs = table(embeddings={})
    assert allocate(costs, sizes(), 10**6).plan.embeddings == FULL
    pinned = allocate(costs, sizes(), 10**6, Constraints(pinned={"embeddings": 5}))
    assert pinned.plan.embeddings == 5 and pinned.predicted == {}


def test_a_plan_reads_well():
    rows = {name: {bits: 1 / bits for bits in QUANTIZED_BITS} for name in LAYERS}
    plan = allocate(table(layers=rows), sizes(), 10**8, Constraints(pinned={K0: 3})).plan
    assert plan.default == Bits(8) and plan.rules == ((K0, Bits(3)),)
    assert plan.name == f"{sizes().deploy(plan) / 1e6:.1f} MB, allocated"
    assert PrecisionPlan.from_json(plan.to_json()) == plan


ERRORS = {
    "pinned to 8 bits, but has a ceiling of 4": {"pinned": {Q0: 8}, "ceiling": {"*": 4}},
    "pinned to 2 bits, but has a floor of 3": {"pinned": {Q0: 2}, "floor": {"*.q": 3}},
    "q is pinned to 2 bits, but is tied to .*k, which has a floor of 3": {
        "pinned": {Q0: 2},
        "floor": {K0: 3},
        "ties": ((Q0, K0),),
    },
    "share one width, but .*k is pinned to 3 and .*q is pinned to 4 bits": {
        "pinned": {Q0: 4, K0: 3},
        "ties": ((Q0, K0),),
    },
    "has a floor of 6 bits and a ceiling of 4": {"floor": {Q0: 6}, "ceiling": {Q0: 4}},
    "q has a floor of 6 bits, but is tied to .*k, which has a ceiling of 4": {
        "floor": {Q0: 6},
        "ceiling": {K0: 4},
        "ties": ((Q0, K0),),
    },
    "must have at least 5 and at most 7 bits, and none of 3, 8 is": {
        "widths": (3, 8),
        "floor": {Q0: 5},
        "ceiling": {Q0: 7},
    },
    r"floor 'model.layers.0.attn.qq' fits no layer; did you mean 'model.layers.0.attn.q'": {
        "floor": {"model.layers.0.attn.qq": 3}
    },
    "pinned 'embedding' fits no layer; did you mean 'embeddings'": {"pinned": {"embedding": 8}},
    "layer 'nothing' of a tie is not in this model": {"ties": (("nothing", Q0),)},
    "no number for embeddings at 3 bits; there are some at 4, 5, 6, 7, 8": {"embeddings": (3, 8)},
}


@pytest.mark.parametrize("words", ERRORS)
def test_what_cannot_be_had_is_said_in_words(words):
    with pytest.raises(AllocationError, match=words):
        allocate(table(), sizes(), 10**8, Constraints(**ERRORS[words]))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"widths": ()}, "widths must name at least one of 2, 3"),
        ({"widths": (1, 4)}, "widths must be one of .* got 1"),
        ({"embeddings": (True,)}, "got True"),
        ({"pinned": {"x": 9}}, "pinned 'x' must be one of .* got 9"),
        ({"ceiling": {"embeddings": 4.0}}, "got 4.0"),
        ({"activations": 3}, "activations must be one of 4, .* got 3"),
    ],
)
def test_widths_that_are_none_are_refused_at_once(said, words):
    with pytest.raises(AllocationError, match=words):
        Constraints(**said)


@pytest.mark.parametrize(
    ("changes", "said", "words"),
    [
        ({"layers": {n: {2: 1.0, 4: 0.1} for n in LAYERS}}, {}, "for .*q at 3 bits; there are some at 2, 4"),
        (
            {"layers": {n: {2: 1.0} for n in LAYERS[:2]}},
            {"widths": (2,)},
            "of another model: .* no layer '.*down'",
        ),
        ({"layers": {n: {2: math.nan} for n in LAYERS}}, {"widths": (2,)}, "says nan for .*q at 2 bits"),
        ({"activations": {}}, {"activations": 8}, "no number for the inputs of .*q at 8 bits$"),
    ],
)
def test_a_table_without_a_needed_figure_is_refused(changes, said, words):
    with pytest.raises(AllocationError, match=words):
        allocate(table(**changes), sizes(), 10**8, Constraints(**said))


def test_figures_that_are_not_needed_may_be_missing():
    costs = table(layers={name: {2: 1.0, 4: 0.1} for name in LAYERS}, uniform={})
    found = allocate(
        costs, sizes(), 10**8, Constraints(floor={"*": 3}, ceiling={"*": 4}, widths=(3, 4), pinned={"*": 4})
    )
    assert found.cost == pytest.approx(0.4) and found.predicted == {}


@pytest.mark.parametrize("budget", [6e7, "60 MB", True, None])
def test_a_budget_that_is_no_number_of_bytes_is_refused(budget):
    with pytest.raises(AllocationError, match="a budget is a whole number of bytes"):
        allocate(table(), sizes(), budget)


# Ties.


def layout(family: str) -> ModelLayout:
    roles = FAMILIES[family].roles
    blocks = [
        Block(f"b{i}", {role: f"b{i}.{at}" for role, at in roles.items()}, "language") for i in range(2)
    ]
    return ModelLayout(family, tuple(blocks), "embed", "norm", "head")


def test_tie_groups_are_what_engines_fuse():
    llama, opt = tied(layout("llama"), "qkv"), tied(layout("opt"), "qkv")
    assert llama[:2] == (
        ("b0.self_attn.q_proj", "b0.self_attn.k_proj", "b0.self_attn.v_proj"),
        ("b0.mlp.gate_proj", "b0.mlp.up_proj"),
    )
    assert len(llama) == 4 and len(opt) == 2  # OPT has no gate, so nothing to tie to `up`
    assert tied(layout("opt"), "block") == tuple(tuple(b.layers.values()) for b in layout("opt").blocks)
    with pytest.raises(AllocationError, match='by "qkv" or by "block"; got \'head\''):
        tied(layout("llama"), "head")


def test_every_layer_is_in_one_group():
    groups = tie_groups("abcdef", [("e", "b"), ("c", "d"), ("d", "e")])
    assert groups == [("a",), ("b", "c", "d", "e"), ("f",)]


# The path.

LIMITS = [
    {},
    {"ties": ((Q0, K0),), "activations": "as weights"},
    {"pinned": {"embeddings": 6, K0: 3}},
    {"widths": WEIGHT_BITS, "embeddings": (FULL,)},
]


@pytest.mark.parametrize("said", LIMITS)
@pytest.mark.parametrize("seed", range(3))
def test_every_plan_of_the_path_is_the_best_of_its_bytes(said, seed):
    costs, size, constraints = table(seed), sizes(), Constraints(**said)
    way = path(costs, size, constraints)
    points = [(way.bytes, way.cost), *((step.bytes, step.cost) for step in way.steps)]
    for count, (taken, cost) in enumerate(points):
        plan = way.plan(count)
        assert size.deploy(plan) == taken and costs.total(plan) == pytest.approx(cost, rel=1e-12, abs=1e-15)
        assert allocate(costs, size, taken, constraints).cost == pytest.approx(cost, rel=1e-11)
    rates = [(c0 - c1) / (b1 - b0) for (b0, c0), (b1, c1) in itertools.pairwise(points)]
    assert rates == sorted(rates, reverse=True) and all(rate > 0 for rate in rates)
    with pytest.raises(AllocationError, match="the smallest plan"):
        way.fitting(way.bytes - 1)


@pytest.mark.parametrize("said", LIMITS)
@pytest.mark.parametrize("seed", range(5))
def test_between_its_plans_the_path_misses_less_than_its_next_step(said, seed):
    costs, size, constraints = table(seed), sizes(), Constraints(**said)
    way, r = path(costs, size, constraints), random.Random(seed)
    for _ in range(30):
        budget = r.randint(way.bytes, way.steps[-1].bytes - 1)
        count = way.fitting(budget)
        mine = way.steps[count - 1] if count else way
        exact = allocate(costs, size, budget, constraints).cost
        assert exact <= mine.cost + 1e-12
        assert mine.cost - exact < mine.cost - way.steps[count].cost


@pytest.mark.parametrize("said", LIMITS)
def test_a_browser_that_takes_the_steps_gets_the_plan_of_the_path(said):
    costs, size, constraints = table(1), sizes(), Constraints(**said)
    way = path(costs, size, constraints)
    told = json.loads(json.dumps(way.to_dict()))
    for budget in range(way.bytes, way.steps[-1].bytes + 50, 13):
        w, e = list(told["start"]["w"]), told["start"]["e"]
        taken, cost = told["start"]["bytes"], told["start"]["cost"]
        for unit, bits, bytes_after, cost_after in told["steps"]:
            if bytes_after > budget:
                break
            taken, cost = bytes_after, cost_after
            if unit == -1:
                e = bits
            for layer in told["units"][unit] if unit >= 0 else ():
                w[layer] = bits
        plan = way.plan(way.fitting(budget))
        assert [b.weights for b in plan.resolve(size.layers).values()] == w and plan.embeddings == e
        assert size.deploy(plan) == taken and costs.total(plan) == pytest.approx(cost, rel=1e-6)


# The built-in model, with the table that comes with it.


def smollm2() -> tuple[SensitivityTable, Sizes]:
    shipped = replace(SensitivityTable.load(SHIPPED), embeddings=SMOLLM2_EMBEDDINGS)

    def at(rows, columns):
        packed = {bits: quantized_bytes(rows, columns, bits, 64) for bits in QUANTIZED_BITS}
        return packed | {FULL: 2 * rows * columns}

    layers = {name: at(*SHAPES[name.split(".")[-1].removesuffix("_proj")]) for name in shipped.layers}
    weights = {name: row[FULL] // 2 for name, row in layers.items()}
    return shipped, Sizes(layers, weights, at(49152, 576), 2 * 61 * 576, 134_515_008)


def test_at_the_bytes_of_a_uniform_plan_the_allocated_one_costs_less():
    costs, size = smollm2()
    for bits, embeddings in itertools.product((3, 4, 5, 6, 7), (4, 8, FULL)):
        uniform = PrecisionPlan.uniform(bits, embeddings=embeddings)
        found = allocate(costs, size, size.deploy(uniform))
        assert found.gap == 0 and found.cost < costs.total(uniform)


def test_the_same_optimum_as_a_mixed_integer_solver():
    scipy = pytest.importorskip("scipy.optimize", reason="scipy solves the same problem for comparison")
    costs, size = smollm2()
    rows = [*((size.layers[n], costs.layers[n]) for n in size.layers), (size.embeddings, costs.embeddings)]
    pairs = [(i, row[0][b], row[1][b]) for i, row in enumerate(rows) for b in row[1]]
    pairs += [(len(rows) - 1, size.embeddings[FULL], 0.0)]
    unit, taken, cost = map(np.array, zip(*pairs, strict=True))
    one_each = (unit == np.arange(len(rows))[:, None]).astype(float)
    for megabytes in (50, 70, 100):
        budget = megabytes * 10**6
        found = allocate(costs, size, budget)
        limits = np.vstack([one_each, taken / 1e3])
        high = [*np.ones(len(rows)), (budget - size.fixed) / 1e3]
        low = [*np.ones(len(rows)), 0]
        solved = scipy.milp(
            cost / found.cost,
            integrality=np.ones(len(pairs)),
            bounds=scipy.Bounds(0, 1),
            constraints=scipy.LinearConstraint(limits, low, high),
            options={"mip_rel_gap": 0},
        )
        assert solved.fun == pytest.approx(1, abs=1e-9)
