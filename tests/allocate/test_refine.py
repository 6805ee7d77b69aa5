"""The search never passes its budget or a constraint, never ends below what it started from on fresh text,
goes on where it was cut, and measures what a whole pass measures."""

import json
import math
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch

from quept.allocate import SensitivityTable
from quept.allocate.search.correction import design, fit
from quept.allocate.search.race import MeasurementLog, Meter, Race, RefineError
from quept.allocate.search.refine import refine
from quept.allocate.search.space import Space, stand_in
from quept.allocate.sensitivity.measure import measure_sensitivity
from quept.allocate.solve.constraints import AllocationError, Constraints, tied
from quept.allocate.solve.solver import allocate
from quept.allocate.solve.uniform import uniform_at_equal_bytes
from quept.evaluate import Reference, Windows, divergence
from quept.plan import FULL, PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import FAMILIES, save_tiny, token_ids

pytestmark = pytest.mark.slow

WIDTHS, EMBEDDINGS = (2, 3, 4, 8), (4, 8, 16)
CONSTRAINTS = Constraints(widths=WIDTHS, embeddings=EMBEDDINGS)


def windows(count, seed) -> Windows:
    return Windows(token_ids(count, seed=seed))


@pytest.fixture(scope="module")
def elastic(tmp_path_factory) -> ElasticModel:
    folder = save_tiny("llama", tmp_path_factory.mktemp("llama"))
    return ElasticModel.open(folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def references(elastic, tmp_path_factory):
    """(to search on, to verify on)"""
    folder = tmp_path_factory.mktemp("references")
    return tuple(
        Reference.open(elastic.base_identity, windows(3, seed), elastic.reference, folder) for seed in (1, 2)
    )


@pytest.fixture(scope="module")
def table(elastic, references) -> SensitivityTable:
    return measure_sensitivity(elastic, windows(2, 3), references[0], WIDTHS, model="tiny", text="tokens")


def budget_of(elastic, weights, embeddings=FULL) -> int:
    return elastic.sizes.deploy(PrecisionPlan.uniform(weights, embeddings=embeddings))


def searched(elastic, references, table, budget, constraints=CONSTRAINTS, trials=25, **options):
    start = options.pop("start", None) or allocate(table, elastic.sizes, budget, constraints).plan
    return list(
        refine(
            elastic,
            start,
            budget,
            *references,
            table=table,
            constraints=constraints,
            seconds=None,
            trials=trials,
            **options,
        )
    )


def whole_kl(elastic, plan, reference) -> float:
    *_, last = divergence(elastic.view(plan), reference, reference.windows)
    return last.kl


@pytest.mark.parametrize("weights, embeddings", [(2, 8), (3, 8), (3, 16), (4, 16)])
def test_the_answer_fits_and_nothing_it_was_compared_with_is_better_on_fresh_windows(
    elastic, references, table, weights, embeddings
):
    budget = budget_of(elastic, weights, embeddings) + 500
    trials = searched(elastic, references, table, budget)
    last = trials[-1]
    assert last.final and not any(t.final for t in trials[:-1])
    assert all(elastic.sizes.deploy(t.plan) <= budget for t in trials)
    kl = whole_kl(elastic, last.plan, references[1])
    assert kl == pytest.approx(last.verified[last.chosen]["kl"], rel=1e-5)
    for plan in (allocate(table, elastic.sizes, budget, CONSTRAINTS).plan, PrecisionPlan.uniform(weights)):
        if elastic.sizes.deploy(plan) <= budget:
            assert kl <= whole_kl(elastic, plan, references[1]) * (1 + 1e-6)


def test_the_best_plan_only_gets_better_and_is_better_than_the_given_one(elastic, references, table):
    budget = budget_of(elastic, 3)
    poor = PrecisionPlan.uniform(2)
    trials = searched(elastic, references, table, budget, start=poor)
    assert all(b.kl <= a.kl for a, b in pairwise(trials))
    assert trials[-1].verified["start"]["kl"] == pytest.approx(
        whole_kl(elastic, poor, references[1]), rel=1e-5
    )
    assert trials[-1].verified["refined"]["kl"] < 0.8 * trials[-1].verified["start"]["kl"]
    assert trials[-2].kl == pytest.approx(whole_kl(elastic, trials[-2].plan, references[0]), rel=1e-4)


def test_a_plan_that_only_wins_on_the_search_windows_is_not_returned(elastic, references, table, monkeypatch):
    """A meter that flatters every plan but the given one while searching: fresh windows tell."""
    budget = budget_of(elastic, 4)
    best = allocate(table, elastic.sizes, budget, CONSTRAINTS).plan
    measured = Meter._measured

    def flattered(self, plan, picks, window):
        key = plan.key(self.elastic.layers)
        kl = measured(self, plan, picks, window)
        return kl if key == best.key(self.elastic.layers) else 1e-3 / (1 + kl)

    monkeypatch.setattr(Meter, "_measured", flattered)
    last = searched(elastic, references, table, budget, start=best)[-1]
    verified = last.verified
    assert verified["refined"]["kl"] > min(verified["start"]["kl"], verified["uniform"]["kl"])
    assert last.chosen in ("start", "uniform")
    assert whole_kl(elastic, last.plan, references[1]) == pytest.approx(
        min(row["kl"] for row in verified.values()), rel=1e-5
    )


def test_a_find_stays_where_it_wins_by_the_error_of_the_difference(elastic, table, tmp_path):
    """Windows differ from each other by far more than two plans do on each of them."""
    budget = budget_of(elastic, 3) + 500
    start = allocate(table, elastic.sizes, budget, CONSTRAINTS).plan
    opened = [
        Reference.open(elastic.base_identity, windows(n, seed), elastic.reference, tmp_path)
        for n, seed in ((3, 1), (6, 2))
    ]
    log = MeasurementLog(None, elastic)
    space = Space.of(elastic, table, CONSTRAINTS, budget)
    meter = Meter(elastic, opened[0], space, log, start, nullcontext)
    picks = [space.picks_of(start), space.uniform(2, 16)]
    for one in picks:
        *_, last = meter.verify(one, opened[1])
        by_window = [
            log.windows[space.plan(one).key(elastic.layers), opened[1].windows.id, i] for i in range(6)
        ]
        assert np.mean(by_window) == pytest.approx(last["kl"], rel=1e-6)
    mine, theirs = (np.array(meter._by_window(one, opened[1])) for one in picks)
    paired = meter.error_between(*picks, opened[1])
    assert paired == pytest.approx((mine - theirs).std(ddof=1) / 6**0.5)
    few = Reference.open(elastic.base_identity, windows(2, 5), elastic.reference, tmp_path)
    assert meter.error_between(*picks, few) is None


@pytest.mark.parametrize("error, chosen", [(0.0, "refined"), (1e3, "start"), (math.nan, "refined")])
def test_a_find_within_the_error_gives_way(elastic, references, table, monkeypatch, error, chosen):
    monkeypatch.setattr(Meter, "error_between", lambda self, one, other, fresh: error)
    last = searched(elastic, references, table, budget_of(elastic, 3), start=PrecisionPlan.uniform(2))[-1]
    assert last.verified["refined"]["kl"] < last.verified["start"]["kl"]
    assert last.chosen == chosen


def test_constraints_and_budget_hold_in_every_plan_that_is_measured(elastic, references, table, monkeypatch):
    plans, measured = [], Meter._measured
    monkeypatch.setattr(
        Meter, "_measured", lambda self, plan, *a: plans.append(plan) or measured(self, plan, *a)
    )
    layer, other = elastic.layers[0], elastic.layers[8]
    constraints = Constraints(
        widths=WIDTHS,
        embeddings=EMBEDDINGS,
        pinned={layer: 8, "embeddings": 8},
        floor={"*.down_proj": 3},
        ceiling={other: 4},
        ties=tied(elastic.layout, "qkv"),
    )
    budget = budget_of(elastic, 4, 8)
    searched(elastic, references, table, budget, constraints)
    assert len(set(plans)) > 12
    for plan in plans:
        bits = {name: b.weights for name, b in plan.resolve(elastic.layers).items()}
        assert elastic.sizes.deploy(plan) <= budget
        assert bits[layer] == 8 and plan.embeddings == 8 and bits[other] <= 4
        assert all(b >= 3 for name, b in bits.items() if name.endswith("down_proj"))
        assert all(len({bits[name] for name in tie}) == 1 for tie in constraints.ties)


@pytest.mark.parametrize(
    "plan, words",
    [
        (PrecisionPlan.uniform(8), "over the budget"),
        (PrecisionPlan.uniform(5), "the constraints allow 2, 3, 4, 8"),
        (PrecisionPlan.uniform(3, 4), "inputs"),
    ],
)
def test_a_start_outside_the_budget_or_the_constraints_is_refused(elastic, references, table, plan, words):
    with pytest.raises(AllocationError, match=words):
        searched(elastic, references, table, budget_of(elastic, 4, 4), start=plan)


def test_a_table_around_another_plan_is_refused(elastic, references):
    table = measure_sensitivity(elastic, windows(1, 3), references[0], WIDTHS, base=PrecisionPlan.uniform(4))
    with pytest.raises(AllocationError, match="around full precision"):
        searched(elastic, references, table, budget_of(elastic, 4), start=PrecisionPlan.uniform(4))


def test_windows_searched_on_do_not_verify(elastic, references, table):
    with pytest.raises(ValueError, match="must be others"):
        searched(elastic, (references[0], references[0]), table, budget_of(elastic, 4))


def test_a_search_without_a_bound_is_refused(elastic, references, table):
    with pytest.raises(ValueError, match="bound"):
        searched(elastic, references, table, budget_of(elastic, 4), trials=None)


def test_the_same_seed_takes_the_same_path_and_another_seed_another(elastic, references, table):
    budget = budget_of(elastic, 3, 8)
    one, again, other = (
        [(t.plan, t.kl, t.tried) for t in searched(elastic, references, table, budget, seed=seed)]
        for seed in (0, 0, 1)
    )
    assert one == again and one != other


@pytest.mark.parametrize("after", [1, 7, 30])
def test_a_search_cut_and_started_again_measures_nothing_twice_and_ends_the_same(
    elastic, references, table, tmp_path, after, monkeypatch
):
    budget, lines = budget_of(elastic, 3, 8), tmp_path / "lines.jsonl"
    start = allocate(table, elastic.sizes, budget, CONSTRAINTS).plan
    running = refine(
        elastic, start, budget, *references, table=table, constraints=CONSTRAINTS, trials=25, resume=lines
    )
    for _ in range(after):
        next(running)
    running.close()
    kept = len(lines.read_text().splitlines())
    with lines.open("a") as file:
        file.write('{"plan": "half a li')
    passes = []
    measured = Meter._measured
    monkeypatch.setattr(Meter, "_measured", lambda *a: passes.append(1) or measured(*a))
    resumed = searched(elastic, references, table, budget, resume=lines)[-1]
    rows = map(json.loads, lines.read_text().splitlines()[1:])
    searching = [row for row in rows if "kl" in row and row["windows"] == references[0].windows.id]
    assert len(passes) + kept - 1 == len(searching)
    whole = searched(elastic, references, table, budget)[-1]
    assert (resumed.plan, resumed.chosen) == (whole.plan, whole.chosen)
    assert resumed.kl == pytest.approx(whole.kl, rel=1e-6)
    passes.clear()
    searched(elastic, references, table, budget, resume=lines)
    assert not passes


def test_figures_of_another_model_are_not_mixed_in(elastic, references, table, tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"measurement": "something else"}\n')
    with pytest.raises(RefineError, match="delete it"):
        searched(elastic, references, table, budget_of(elastic, 4), resume=lines)


def test_the_clock_ends_the_search_and_what_was_found_is_verified(elastic, references, table):
    budget = budget_of(elastic, 4)
    start = allocate(table, elastic.sizes, budget, CONSTRAINTS).plan
    *_, last = refine(elastic, start, budget, *references, table=table, constraints=CONSTRAINTS, seconds=1e-9)
    assert last.final and last.tried == 2 and last.fraction == 1
    assert set(last.verified) == {"start", "uniform", "refined"}


def test_no_table_is_needed(elastic, references):
    budget, start = budget_of(elastic, 4), PrecisionPlan.uniform(2)
    *_, last = refine(elastic, start, budget, *references, constraints=CONSTRAINTS, seconds=None, trials=20)
    assert last.verified["refined"]["kl"] < last.verified["start"]["kl"]
    assert elastic.sizes.deploy(last.plan) <= budget


def test_a_quantized_cache_is_measured_and_kept(elastic, references, table):
    budget = budget_of(elastic, 4)
    start = PrecisionPlan.uniform(3, kv=4)
    last = searched(elastic, references, table, budget, start=start, trials=6)[-1]
    *_, wanted = divergence(
        elastic.view(start), references[1], references[1].windows, lambda: elastic.make_cache(start)
    )
    assert last.verified["start"]["kl"] == pytest.approx(wanted.kl, rel=1e-5) and last.plan.kv == 4


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pass_that_starts_where_plans_differ_is_the_whole_pass(name, tmp_path):
    """Whatever was kept: candidates that share one block, two, or none with the plan that was kept."""
    elastic = ElasticModel.open(save_tiny(name, tmp_path / "m", num_hidden_layers=4), dtype=torch.float32)
    reference = Reference.open(elastic.base_identity, windows(2, 1), elastic.reference, tmp_path)
    space = Space.of(elastic, stand_in(elastic.sizes), CONSTRAINTS, 10**9)
    meter = Meter(elastic, reference, space, MeasurementLog(None, elastic), PrecisionPlan.full(), _Gate)
    rng = np.random.default_rng(0)
    kept = space.uniform(3, 16)
    lengths = np.array([len(unit.bits) for unit in space.units])
    started = []
    for trial in range(14):
        picks = space.offsets + rng.integers(0, lengths)
        picks = np.where(space.place < trial % 5, kept, picks)
        for window in (0, 1) if trial % 3 else (1,):
            kl = meter.kl(picks, window)
            wanted = next(
                divergence(
                    elastic.view(space.plan(picks)),
                    one := Reference.open(
                        elastic.base_identity,
                        Windows(reference.windows.ids[window : window + 1]),
                        elastic.reference,
                        tmp_path,
                    ),
                    one.windows,
                )
            ).kl
            assert kl == pytest.approx(wanted, rel=1e-4, abs=1e-6)
            started.append(min(space.shared(picks, kept), len(meter._states.get(window, []))))
        if trial % 4 == 0:
            meter.keep(picks)
            kept = picks
    assert max(started) > 1


class _Gate:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def test_the_gate_is_held_once_a_pass(elastic, references, table):
    turns = []

    class Gate(_Gate):
        def __enter__(self):
            turns.append(1)

    trials = searched(elastic, references, table, budget_of(elastic, 4), trials=5, gate=Gate)
    assert len(turns) >= len(trials) - 1


def test_uniform_plans_that_fit_are_found_for_every_width_of_the_embeddings(elastic, table):
    budget = budget_of(elastic, 4, 8) + 2000
    space = Space.of(elastic, table, CONSTRAINTS, budget)
    found = {(b, e) for b, e, _ in space.uniform_plans()}
    for e in EMBEDDINGS:
        fitting = [b for b in WIDTHS if budget_of(elastic, b, e) <= budget]
        assert [b for b, at in found if at == e] == ([max(fitting)] if fitting else [])
    for b, e, picks in space.uniform_plans():
        assert space.plan(picks) == PrecisionPlan.uniform(b, embeddings=e)
        for raised in space.raised(b, e):
            assert space.fits(raised) and (raised >= picks).all() and (raised > picks).any()


def test_a_plan_is_its_picks(elastic, table):
    space = Space.of(elastic, table, CONSTRAINTS, 10**9)
    rng = np.random.default_rng(0)
    for _ in range(20):
        picks = space.offsets + rng.integers(0, [len(unit.bits) for unit in space.units])
        plan = space.plan(picks)
        assert (space.picks_of(plan) == picks).all()
        assert elastic.sizes.deploy(plan) == elastic.sizes.fixed + space.bytes[picks].sum()


def test_the_fit_recovers_costs_that_whole_plans_were_made_from(elastic, table):
    """Plans whose KL follows the model with known factors, and a table that does not know them."""
    space = Space.of(elastic, table, CONSTRAINTS, 10**9)
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 0.3, space.factors.shape[1])
    costs = space.costs * np.exp(space.factors @ truth)
    lengths = [len(unit.bits) for unit in space.units]
    picks = np.stack([space.offsets + rng.integers(0, lengths) for _ in range(400)])
    logs = 0.3 + 0.8 * np.log(costs[picks].sum(1))
    known, new = slice(0, 300), slice(300, 400)
    posterior = fit(space.costs, space.factors, picks[known], logs[known], np.full(300, 0.01))

    def rank(values):
        return np.argsort(np.argsort(values))

    def agreement(guess):
        return np.corrcoef(rank(guess[picks[new]].sum(1)), rank(logs[new]))[0, 1]

    assert posterior.misfit < 0.02
    assert agreement(posterior.costs()) > 0.99 > 0.97 > agreement(space.costs)
    draws = np.stack([posterior.costs(1.0, rng) for _ in range(200)])
    wide = fit(space.costs, space.factors, picks[:5], logs[:5], np.full(5, 0.01))
    assert draws.std(0).sum() < np.stack([wide.costs(1.0, rng) for _ in range(200)]).std(0).sum()


def test_every_option_has_the_factors_of_its_roles_stretch_and_width(elastic, table):
    space = Space.of(elastic, table, CONSTRAINTS, 10**9)
    blocks = {n: i for i, b in enumerate(elastic.layout.blocks) for n in b.layers.values()}
    roles = {n: r for b in elastic.layout.blocks for r, n in b.layers.items()}
    matrix = design(space.units, roles, blocks, elastic.sizes.weights)
    rows = [(unit, bits) for unit in space.units for bits in unit.bits]
    assert matrix.shape[0] == len(rows)
    for (one, b), first in zip(rows, matrix, strict=True):
        for (other, c), second in zip(rows, matrix, strict=True):
            if one.layers and other.layers and b == c:
                u, v = one.layers[0], other.layers[0]
                assert first @ second == 1 + (roles[u] == roles[v]) + (blocks[u] == blocks[v])
            elif (one.layers, b) != (other.layers, c):
                assert first @ second == 0


class Sizes:
    """Bytes that can be checked by hand: 10 a weight bit, 3 an embedding bit."""

    def deploy(self, plan):
        return 10 * plan.default.weights + 3 * plan.embeddings


def test_between_uniform_plans_log_kl_is_linear_in_bytes():
    found = uniform_at_equal_bytes(Sizes(), 48 + 35, lambda plan: 4.0**-plan.default.weights)
    assert (found.below.name, found.above.name) == ("W3", "W4")
    assert found.kl == pytest.approx(4.0**-3.5)


def test_the_yardstick_is_read_off_the_front_of_all_uniform_plans():
    def kl(plan):
        return 4.0**-plan.default.weights + 0.01 * 2.0**-plan.embeddings

    widths, embeddings = (2, 3, 4, 5), (4, 5, 6, 16)
    plans = [PrecisionPlan.uniform(b, embeddings=e) for b in widths for e in embeddings]
    points = sorted((Sizes().deploy(p), kl(p)) for p in plans)
    front = [p for i, p in enumerate(points) if all(p[1] < q[1] for q in points[:i])]
    for budget in range(32, 98):
        asked = []
        found = uniform_at_equal_bytes(
            Sizes(), budget, lambda plan, asked=asked: asked.append(plan) or kl(plan), widths, embeddings
        )
        below = max(p for p in front if p[0] <= budget)
        above = min((p for p in front if p[0] > budget), default=below)
        share = (budget - below[0]) / max(1, above[0] - below[0])
        assert found.kl == pytest.approx(below[1] ** (1 - share) * above[1] ** share)
        assert len(set(asked)) < len(plans)


def test_a_budget_below_every_uniform_plan_is_refused():
    with pytest.raises(AllocationError, match="no uniform plan fits"):
        uniform_at_equal_bytes(Sizes(), 10, lambda plan: 1.0)


def test_a_plan_with_no_finite_answer_loses(elastic, references, table):
    space = Space.of(elastic, table, CONSTRAINTS, 10**9)
    meter = Meter(elastic, references[0], space, MeasurementLog(None, elastic), PrecisionPlan.full(), _Gate)
    good, bad = space.uniform(4, 16), space.uniform(8, 16)
    key = space.plan(bad).key(elastic.layers)
    for window in range(3):
        row = {"plan": key, "windows": references[0].windows.id, "window": window, "kl": None}
        meter.log.add(row)
    race = Race(meter)
    assert list(race.run(good, None))[-1]
    assert not any(race.run(bad, race.best)) and (race.best == good).all()
    assert math.isinf(race.mean(bad)) and np.isfinite(race.posterior().costs()).all()
