"""A front falls as it grows, keeps to its budgets, goes on where it was cut, and its file is read back or
refused with a sentence."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from quept.allocate import SensitivityTable
from quept.allocate import front as module
from quept.allocate.front import Front, FrontError, load_front, measure_front
from quept.allocate.sensitivity.measure import measure_sensitivity
from quept.allocate.solve.constraints import Constraints
from quept.evaluate import Reference, ResultKey, Results, Windows, divergence
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import save_tiny, token_ids

pytestmark = pytest.mark.slow

CONSTRAINTS = Constraints(widths=(2, 3, 4, 8), embeddings=(4, 8, 16))
BITS = (1.0, 5.0, 6.5, 9.0, 12.0)


@pytest.fixture(scope="module")
def elastic(tmp_path_factory) -> ElasticModel:
    folder = save_tiny("llama", tmp_path_factory.mktemp("llama"))
    return ElasticModel.open(folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def references(elastic, tmp_path_factory):
    """(to search on, shown)"""
    folder = tmp_path_factory.mktemp("references")
    windows = (Windows(token_ids(2, seed=seed)) for seed in (1, 2))
    return [Reference.open(elastic.base_identity, w, elastic.reference, folder) for w in windows]


@pytest.fixture(scope="module")
def table(elastic, references) -> SensitivityTable:
    return measure_sensitivity(elastic, references[0].windows, references[0], (2, 3, 4, 8), model="tiny")


def made(elastic, references, table, bits=BITS, **options) -> Front:
    options = {"constraints": CONSTRAINTS, "seconds": None, "trials": 12} | options
    return measure_front(elastic, table, *references, bits, model="tiny", **options)


@pytest.fixture(scope="module")
def front(elastic, references, table) -> Front:
    return made(elastic, references, table)


def test_more_bytes_buy_less_divergence_within_each_budget(elastic, front):
    assert len(front.points) >= 3
    for a, b in pairwise(front.points):
        assert a.bytes < b.bytes and a.measured.kl > b.measured.kl
    for point in (*front.points, *front.dominated):
        assert elastic.sizes.deploy(point.plan) == point.bytes <= point.budget
        assert point.measured.kl <= point.uniform.kl
        assert point.bits_per_parameter == pytest.approx(8 * point.bytes / elastic.sizes.parameters, abs=1e-4)


def test_a_budget_that_no_plan_fits_is_left_out(front):
    assert {p.name for p in (*front.points, *front.dominated)} == {f"best {b:g} bits" for b in BITS[1:]}


def test_a_point_is_what_its_plan_measures_on_the_shown_text(elastic, references, front, table):
    for point in front.points:
        *_, wanted = divergence(elastic.view(point.plan), references[1], references[1].windows)
        assert point.measured.kl == pytest.approx(wanted.kl, rel=1e-5)
        assert point.predicted == pytest.approx(table.predicted(point.plan))


def test_how_far_predictions_are_off_is_measured_on_the_front(front, table):
    off = [p.measured.kl / table.predicted(p.plan)["kl"] for p in (*front.points, *front.dominated)]
    assert 1 <= min(max(x, 1 / x) for x in off) <= front.off_by(table) <= max(max(x, 1 / x) for x in off)
    assert replace(front, points=front.points[:2], dominated=()).off_by(table) is None


def test_no_budget_that_fits_is_an_error(elastic, references, table):
    with pytest.raises(FrontError, match="larger budgets"):
        made(elastic, references, table, (0.5, 1.0))


def test_a_beaten_plan_leaves_the_front_and_a_beating_one_clears_it(front):
    one, two = front.points[:2]
    worse = replace(two, name="worse", bytes=two.bytes + 1)
    grown = front.with_point(worse)
    assert grown.points == front.points and worse in grown.dominated
    better = replace(two, name="better", bytes=one.bytes)
    names = {p.name for p in front.with_point(better).points}
    assert "better" in names and not {one.name, two.name} & names
    assert len(front.with_point(better).dominated) == len(front.dominated) + 2


def test_the_file_is_read_back(front, tmp_path):
    front.save(tmp_path / "front.json")
    assert load_front(tmp_path / "front.json") == front


def test_the_file_is_written_after_every_plan_and_gone_on_with(
    elastic, references, table, front, tmp_path, monkeypatch
):
    out, seen = tmp_path / "front.json", []

    class Killed(Exception):
        pass

    def kill(stage, fraction):
        seen.append(fraction)
        if out.exists() and len(json.loads(out.read_text())["plans"]) == 2:
            raise Killed

    with pytest.raises(Killed):
        made(elastic, references, table, out=out, progress=kill)
    assert seen == sorted(seen)
    calls, refine = [], module.refine
    monkeypatch.setattr(module, "refine", lambda *a, **k: calls.append(a[2]) or refine(*a, **k))
    again = made(elastic, references, table, out=out)
    assert len(calls) == len(BITS) - 1 - 2 and load_front(out) == again
    assert [(p.bytes, p.plan) for p in again.points] == [(p.bytes, p.plan) for p in front.points]
    calls.clear()
    assert made(elastic, references, table, out=out) == again and not calls


def test_a_front_of_another_search_is_not_gone_on_with(elastic, references, table, front, tmp_path):
    front.save(tmp_path / "front.json")
    with pytest.raises(FrontError, match="another model, text or search"):
        made(elastic, references, table, out=tmp_path / "front.json", seed=1)


def test_a_results_store_takes_what_was_measured(elastic, references, front, tmp_path):
    store = Results.open(tmp_path / "results.sqlite")
    for _, key, payload in front.results(elastic.layers):
        store.put(key, payload)
    point = front.points[0]
    key = ResultKey(point.plan.key(elastic.layers), elastic.identity, references[1].windows.id, "float32")
    assert store.get(key).payload["kl"] == point.measured.kl


def damaged(front, change) -> str:
    data = json.loads(front.to_json())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d.update(format="other"), "not a front"),
        (lambda d: d.update(version=99), "update it"),
        (lambda d: d.pop("weights"), "weights: it is missing"),
        (lambda d: d.update(more=1), "more: nothing of that name"),
        (lambda d: d.update(conditions=[]), "conditions: it should be"),
        (lambda d: d.update(plans={}), "plans: it should be a valid array"),
        (lambda d: d["plans"].reverse(), "not better and larger"),
        (lambda d: d["plans"][1].update(bytes=-1), "bytes of entry 2 of plans: it should be"),
        (
            lambda d: d["plans"][0]["measured"].update(kl="low"),
            "measured.kl of entry 1 of plans: it should be",
        ),
        (lambda d: d["plans"][0]["measured"].pop("kl"), "measured.kl of entry 1 of plans: it is missing"),
        (lambda d: d["plans"][0].update(chosen="luck"), "chosen of entry 1 of plans"),
        (lambda d: d["plans"][0].update(predicted=None), "predicted of entry 1 of plans"),
        (lambda d: d["plans"][0].update(plan={}), "not a plan"),
        (lambda d: d["plans"].insert(0, 3), ": entry 1 of plans: it should be an object"),
    ],
)
def test_what_is_no_front_is_refused_in_words(front, change, words):
    with pytest.raises(FrontError, match=words):
        Front.from_json(damaged(front, change))


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(FrontError, match=r"broken\.json: .*not valid JSON"):
        load_front(tmp_path / "broken.json")
    with pytest.raises(FrontError, match="cannot read a front from"):
        load_front(tmp_path / "none.json")


def test_names_say_the_budget(front):
    assert all(PrecisionPlan.from_json(p.plan.to_json()).name == p.name for p in front.points)
