"""A visitor's refinement: bounded, stopped by its visitor, a turn at a time, and never on the text that the
pages' figures are of."""

from __future__ import annotations

import re
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from app.refinement import refinement
from app.service import Sample, Service
from app.shell.measuring import refine
from quept.evaluate import Results
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.app.tiny import tiny_table

pytestmark = pytest.mark.slow

MODEL = "tiny"
PLAN = PrecisionPlan.uniform(4)


@pytest.fixture
def service(elastic: ElasticModel, tmp_path: Path) -> Service:
    sample = Sample("The quick brown fox jumps over the lazy dog. " * 40, "foxes", tokens=256, context=64)
    made = Service({MODEL: elastic}, sample, Results.open(tmp_path / "results.sqlite"), tmp_path)
    made.opened[MODEL].sensitivity = tiny_table(elastic)
    return made


def request(elastic: ElasticModel, **limits) -> dict:
    return {"budget": elastic.sizes.deploy(PLAN)} | limits


def refined(service: Service, elastic: ElasticModel, visitor: str = "a", seconds: float = 4, **limits):
    return service.refine(MODEL, PLAN, request(elastic, **limits), visitor, seconds)


def test_it_ends_in_time_with_a_plan_that_fits_and_is_measured_not_worse(service, elastic):
    *running, last = refined(service, elastic)
    assert last["status"] == "done" and last["limit"] == 4 and last["message"] == ""
    assert last["tried"] >= 2 and last["kl"] <= last["start_kl"]
    assert last["uniform_kl"] is None or last["kl"] <= last["uniform_kl"]
    assert last["better"] == ("plan" in last)
    if "plan" in last:
        plan = service.plan_of(MODEL, last["plan"])
        assert plan.name == last["name"]
        assert elastic.sizes.deploy(plan) <= elastic.sizes.deploy(PLAN)
    fractions = [state["fraction"] for state in running]
    assert fractions == sorted(fractions) and all(state["status"] == "running" for state in running)


def test_limits_hold_in_what_it_finds(service, elastic):
    pins = [[0, 4], [13, 4]]
    *_, last = refined(service, elastic, pins=pins, full_embeddings=True)
    if "plan" in last:
        assert (last["plan"]["w"][0], last["plan"]["w"][13], last["plan"]["e"]) == (4, 4, 16)
    assert last["status"] == "done"


def test_the_search_sees_other_text_than_the_page_shows_figures_of(service):
    opened = service.opened[MODEL]
    shown = set(map(tuple, opened.task.windows.ids.tolist()))
    for first in (0, 4):
        assert not shown & set(map(tuple, opened.task.windows_from(first, 4).ids.tolist()))
    with pytest.raises(ValueError, match="too short"):
        opened.task.windows_from(1000, 4)


def test_a_stop_is_heard_before_the_next_turn_at_the_gate(service, elastic):
    opened, turns, asked = service.opened[MODEL], [], []

    def gate():
        turns.append(len(asked))
        return nullcontext()

    def stopped() -> bool:
        asked.append(1)
        return len(turns) >= 5

    *_, last = refinement(opened, PLAN, request(elastic), gate, stopped, 60)
    assert last.state["status"] == "cancelled" and len(turns) == 5


def test_the_visitor_stops_it_and_keeps_the_best_so_far(service, elastic):
    states = refined(service, elastic, seconds=60)
    for state in states:
        if state.get("tried", 0) >= 2:
            service.stop_refining("a")
            break
    last = list(states)[-1]
    assert last["status"] == "cancelled" and last["seconds"] < 50
    assert last["better"] == ("plan" in last)


def test_a_newer_refinement_of_the_same_visitor_ends_the_older_silently(service, elastic):
    older, other = refined(service, elastic, seconds=60), refined(service, elastic, "b", seconds=2)
    next(older), next(older), next(other)
    newer = refined(service, elastic, seconds=2)
    next(newer)
    assert list(older) == []
    assert list(newer)[-1]["status"] == "done"
    assert list(other)[-1]["status"] == "done"


def test_another_visitor_is_measured_while_it_runs(service, elastic):
    states = refined(service, elastic, seconds=60)
    next(states), next(states)
    done = threading.Event()

    def visit() -> None:
        *_, last = service.measure(MODEL, PrecisionPlan.uniform(3), "b")
        assert last["status"] == "done"
        done.set()

    visitor = threading.Thread(target=visit)
    visitor.start()
    for _ in states:
        if done.is_set():
            break
    visitor.join(60)
    states.close()
    assert done.is_set() and not service.gate.waiting


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"ties": "all"}, "not understood"),
        ({"budget": "soup"}, "60 MB"),
        ({"pins": [[0, 8]]}, "allow 8"),
    ],
)
def test_what_cannot_be_refined_is_said(service, elastic, limits, says):
    *_, last = refined(service, elastic, **limits)
    assert last["status"] == "error" and re.search(says, last["message"])


def test_without_a_table_it_says_so(service, elastic):
    service.opened[MODEL].sensitivity = None
    *_, last = refined(service, elastic)
    assert last["status"] == "error" and "sensitivity table" in last["message"]


def test_whatever_goes_wrong_the_page_gets_a_sentence(service, elastic, monkeypatch):
    def broken(*_args, **_options):
        raise RuntimeError("of its own")
        yield

    monkeypatch.setattr(service, "refine", broken)
    states = refine(service, MODEL, service.plan_json_of(MODEL, PLAN), request(elastic), "a")
    assert next(states)["status"] == "error"
    with pytest.raises(RuntimeError):
        next(states)
