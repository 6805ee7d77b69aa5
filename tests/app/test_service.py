"""The service and the workbench's handlers, on a tiny model: every visitor gets the numbers of the plan
they asked for."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
import torch

from app.components.equalizer import check_plan
from app.gate import Turn
from app.link import decode, encode
from app.pages.compare import pair
from app.service import Sample, Service
from app.shell.measuring import measure
from app.shell.plans import chosen_point, file_of, linked, shelf, uploaded
from quept.allocate.front import Front, Point
from quept.artifact import Source
from quept.engines import GRADED_WIDTHS
from quept.evaluate import Estimate, ResultKey, Results
from quept.plan import FULL, PlanError, PrecisionPlan
from quept.runtime import ElasticModel
from tests.app.tiny import tiny_table
from tests.tiny import save_tiny

MODEL = "tiny"


@pytest.fixture
def service(elastic: ElasticModel, tmp_path: Path) -> Service:
    sample = Sample("The quick brown fox jumps over the lazy dog. " * 40, "foxes", tokens=256, context=64)
    return Service({MODEL: elastic}, sample, Results.open(tmp_path / "results.sqlite"), tmp_path)


def test_the_equaliser_is_told_how_often_a_text_asks_each_expert(tmp_path):
    mixture = ElasticModel.open(save_tiny("mixtral", tmp_path / "m"), device="cpu", dtype=torch.float32)
    sample = Sample("The quick brown fox jumps over the lazy dog. " * 9, "foxes", tokens=128, context=32)
    service = Service({MODEL: mixture}, sample, Results.open(tmp_path / "r.sqlite"), tmp_path)
    layers = service.describe(MODEL)["layers"]
    assert [layer["name"] for layer in layers if "asked" in layer] == [
        name for name in mixture.layers if ".experts." in name
    ]
    shares = [layer["asked"] for layer in layers if layer["name"].endswith("up_proj")]
    assert sum(shares) == pytest.approx(2 * mixture.config.num_experts_per_tok, abs=0.01)


def measured(service: Service, plan: PrecisionPlan, visitor: str = "a") -> dict:
    return list(service.measure(MODEL, plan, visitor))[-1]


def test_the_description_fits_the_browser_and_its_sizes_are_the_deploy_bytes(
    service: Service, elastic: ElasticModel
):
    described = json.loads(json.dumps(service.describe(MODEL)))
    assert [layer["name"] for layer in described["layers"]] == list(elastic.layers)
    for i, bits in enumerate(described["bits"]):
        total = described["fixed_bytes"] + sum(sizes[i] for sizes in described["sizes"])
        for e, size in zip(described["embedding_bits"], described["embedding_bytes"], strict=True):
            assert total + size == elastic.sizes.deploy(PrecisionPlan.uniform(bits, embeddings=e))


def test_every_width_that_the_equaliser_offers_is_taken_measured_linked_and_kept_in_a_file(service: Service):
    opened = service.opened["tiny"]
    table = tiny_table(opened.elastic)
    opened.sensitivity = replace(
        table, embeddings=dict.fromkeys((2, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 8), 1.0)
    )
    offered = opened.description["embedding_bits"]
    assert set(GRADED_WIDTHS) < set(offered)
    for bits in offered:
        sent = json.loads(json.dumps({"w": [4] * len(opened.elastic.layers), "e": bits}))
        plan_json = check_plan(sent, opened.description)
        assert decode(encode(plan_json, "tiny"), opened.description) == plan_json
        plan = service.plan_of("tiny", plan_json)
        assert plan.embeddings == bits and PrecisionPlan.from_json(plan.to_json()) == plan
    assert measured(service, PrecisionPlan.uniform(4, embeddings=4.5))["status"] == "done"


def test_estimates_grow_with_every_window_and_the_last_is_kept(service: Service):
    states = list(service.measure(MODEL, PrecisionPlan.uniform(3), "a"))
    tokens = [s["estimate"]["tokens"] for s in states if s["estimate"]]
    assert tokens == sorted(tokens) and tokens[-1] == 4 * 63
    assert states[-1]["status"] == "done"
    again = list(service.measure(MODEL, PrecisionPlan.uniform(3), "b"))
    assert [s["status"] for s in again] == ["stored"]
    assert again[0]["estimate"]["kl"] == states[-1]["estimate"]["kl"]


def test_perplexity_is_that_of_the_whole_text_from_the_first_estimate_on(service: Service, monkeypatch):
    monkeypatch.setattr("app.service.UPDATE_S", 0.0)
    monkeypatch.setattr("quept.evaluate.tasks.text.FIRST", 20)
    full = measured(service, PrecisionPlan.full())["estimate"]["ppl"]
    states = list(service.measure(MODEL, PrecisionPlan.uniform(3), "a"))
    estimates = [state["estimate"] for state in states if state["estimate"]]
    assert [e["tokens"] for e in estimates] == [20, 63, 126, 189, 252, 252, 252]  # at last with its speed
    for e in estimates:
        assert e["ppl_ref"] == pytest.approx(full, rel=1e-4)
        assert e["ppl"] == pytest.approx(full * e["ppl_ratio"], rel=1e-4) and e["ppl_se"] > 0
    assert estimates[-2]["ppl"] == estimates[-1]["ppl"]


def test_a_release_of_a_fader_opens_the_results_file_twice_at_most(service: Service, monkeypatch):
    tried = [service.plan_json_of(MODEL, PrecisionPlan.uniform(bits)) for bits in (8, 6, 5)]
    opened, connect = [], sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kw: opened.append(args) or connect(*args, **kw))
    states = list(measure(service, MODEL, tried[0], tried, "a"))
    assert states[-1][0]["status"] == "done" and len(states[-1][1]["points"]) > 1
    assert len(opened) <= 2


def test_a_plan_that_was_measured_before_is_looked_up_and_gives_no_memory_back(service: Service, monkeypatch):
    """Walking over the heap takes tens of milliseconds, beside whoever computes."""
    released = []
    monkeypatch.setattr(ElasticModel, "let_go", lambda _: released.append(1))
    plan = PrecisionPlan.uniform(3)
    measured(service, plan)
    assert len(released) == 1
    assert measured(service, plan)["status"] == "stored" and len(released) == 1


def test_a_stored_row_that_is_no_estimate_is_measured_again(service: Service):
    plan, opened = PrecisionPlan.uniform(3), service.opened[MODEL]
    whole = measured(service, plan)["estimate"]
    for payload in ({"tokens": whole["tokens"]}, whole | {"kl": "low"}, whole | {"ppl": [1.0]}):
        opened.results.put(opened.task.key(plan), payload)
        assert opened.stored(plan) is None
        assert measured(service, plan)["status"] == "done" and opened.stored(plan)["kl"].value == whole["kl"]


def test_a_newer_edit_ends_the_older_measurement_of_the_same_visitor_only(service: Service):
    older = service.measure(MODEL, PrecisionPlan.uniform(2), "a")
    other = service.measure(MODEL, PrecisionPlan.uniform(5), "b")
    next(older), next(older), next(other)
    newer = service.measure(MODEL, PrecisionPlan.uniform(3), "a")
    next(newer)
    assert list(older) == []
    assert list(other)[-1]["status"] == "done"
    assert list(newer)[-1]["status"] == "done"
    assert service._newest == {}


def test_a_measurement_lets_others_go_first_within_a_window_and_ends_there_for_a_newer_edit(
    service: Service, monkeypatch
):
    paused: list[bool] = []

    def pause(turn: Turn) -> None:
        paused.append(turn.first)
        if not turn.first:
            service._newest["a"] = object()  # what a newer edit leaves
        turn.check()

    monkeypatch.setattr(Turn, "pause", pause)
    *_, last = service.measure(MODEL, PrecisionPlan.uniform(3), "a")
    assert last["estimate"]["tokens"] == 63  # of the first window
    assert paused.count(True) > 2 and paused.count(False) == 1


def test_visitors_at_once_get_the_numbers_they_would_get_alone(
    service: Service, elastic: ElasticModel, tmp_path: Path
):
    plans = [PrecisionPlan.uniform(b) for b in (2, 3, 4, 5, 6, 7, 8, FULL)]
    together: dict[int, float] = {}

    def visit(i: int) -> None:
        together[i] = measured(service, plans[i], f"visitor {i}")["estimate"]["kl"]

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(len(plans))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    sample = service.opened[MODEL].sample
    alone = Service({MODEL: elastic}, sample, Results.open(tmp_path / "alone.sqlite"), tmp_path)
    assert together == {i: measured(alone, plan)["estimate"]["kl"] for i, plan in enumerate(plans)}


def test_wire_and_plan_are_two_spellings_of_one_thing(service: Service, elastic: ElasticModel):
    plan = PrecisionPlan.of({"*.down_proj": 8, elastic.layers[0]: 2}, default=4, kv=8, embeddings=6)
    plan_json = service.plan_json_of(MODEL, plan)
    back = service.plan_of(MODEL, plan_json)
    assert back.key(elastic.layers) == plan.key(elastic.layers)
    assert back.name.startswith("mixed") and back.name.endswith("bits, E6")
    assert service.plan_of(MODEL, service.plan_json_of(MODEL, PrecisionPlan.uniform(4))).name == "W4"
    first, *_, last = elastic.cached_blocks
    mixed = PrecisionPlan.of({}, 4, kv=8, kv_blocks={first: 4, last: 16})
    back = service.plan_of(MODEL, service.plan_json_of(MODEL, mixed))
    assert back.key(elastic.layers) == mixed.key(elastic.layers) and ", KV mixed" in back.name
    both = PrecisionPlan.uniform(4, kv=8, embeddings=6)
    assert service.plan_of(MODEL, service.plan_json_of(MODEL, both)).name == "W4KV8E6"


def test_uniform_is_the_best_uniform_plan_that_fits_by_name(service: Service, elastic: ElasticModel):
    three, four = (measured(service, PrecisionPlan.uniform(b)) for b in (3, 4))
    opened, size = service.opened[MODEL], (three["deploy_bytes"] + four["deploy_bytes"]) // 2
    found = opened.uniform_at(size)
    assert found["kl"] == three["estimate"]["kl"] and found["label"] == "uniform W3"
    best = min((three, four), key=lambda state: state["estimate"]["kl"])
    assert opened.uniform_at(10**12)["kl"] == best["estimate"]["kl"]
    assert opened.uniform_at(three["deploy_bytes"] - 1) is None


def test_predictions_are_of_the_data_that_plans_are_measured_on(service: Service, elastic: ElasticModel):
    full = {m["name"]: m["full"] for m in measured(service, PrecisionPlan.uniform(4))["metrics"]}["ppl"]
    opened = service.opened[MODEL]
    opened.sensitivity = tiny_table(elastic)  # on a text where full precision has 20
    plan = PrecisionPlan.of({"*.o_proj": 3}, default=6)
    ratio = opened.sensitivity.predicted(plan)["ppl"] / 20
    assert full != pytest.approx(20) and opened.metrics()[0]["full"] == full
    assert opened.predicted(plan)["ppl"] == pytest.approx(ratio * full)
    prediction = opened.description["prediction"]
    assert prediction["reference"]["ppl"] == full and prediction["on"].endswith("256 tokens of foxes")


def test_a_uniform_plan_is_not_compared_with_itself(service: Service):
    four = PrecisionPlan.uniform(4)
    measured(service, PrecisionPlan.uniform(3))
    opened = service.opened[MODEL]
    best = measured(service, four)["uniform"]
    assert best is None or best["label"] != "uniform W4"
    assert opened.uniform_at(10**12, besides=PrecisionPlan.full()) is not None


def test_uniform_plans_with_small_embeddings_compete(service: Service, elastic: ElasticModel):
    opened, figures = service.opened[MODEL], {"ppl": 30.0, "same_top": 0.5, "tokens": 256}
    three = measured(service, PrecisionPlan.uniform(3))["estimate"]["kl"]
    whole = {
        "W4E4": figures | {"kl": three / 2},
        "W4E8": figures | {"kl": three},
        "W2E4": figures | {"kl": 9.0},
    }
    opened.sensitivity = tiny_table(elastic, whole=whole)
    size = {name: elastic.sizes.deploy(PrecisionPlan.parse(name)) for name in ("W3", *whole)}
    assert size["W2E4"] < size["W4E4"] < size["W3"]
    for fits, name in (("W3", "W4E4"), ("W4E4", "W4E4"), ("W2E4", "W2E4")):
        assert opened.uniform_at(size[fits])["label"] == f"uniform {name}"
    opened.sensitivity = tiny_table(
        elastic, whole=whole, reference={"ppl": 20.0, "tokens": 99, "context": 64}
    )
    assert opened.uniform_at(size["W4E4"]) is None  # measured on something else than the sample


def test_where_full_precision_cannot_be_kept_perplexities_are_of_the_text_read_so_far(service, monkeypatch):
    monkeypatch.setattr("app.service.UPDATE_S", 0.0)
    monkeypatch.setattr("quept.evaluate.Reference.whole", lambda self: None)
    for bits in (3, 4, 16):
        measured(service, PrecisionPlan.uniform(bits))
    plan = PrecisionPlan.of({"*.down_proj": 4}, default=3)
    states = [state for state in service.measure(MODEL, plan, "a") if state["estimate"]]
    full = [state["metrics"][0]["full"] for state in states]
    assert len(set(full)) > 2 and states[-1]["metrics"][0]["name"] == "ppl"
    ratios = [state["uniform"]["ppl"] / perplexity for state, perplexity in zip(states, full, strict=True)]
    assert ratios == pytest.approx([ratios[-1]] * len(ratios))


def test_the_history_joins_the_chart_and_a_point_loads_its_plan(service: Service):
    plan_json = service.plan_json_of(MODEL, PrecisionPlan.of({"*.down_proj": 6}, default=3))
    *_, (state, chart, tried, done) = measure(service, MODEL, plan_json, [], "a")
    assert state["status"] == "done" and tried == [plan_json]
    assert done == {"model": MODEL, "plan": plan_json, "task": ""}
    point = next(p for p in chart["points"] if p["kind"] == "tried")
    assert point["bytes"] == state["deploy_bytes"]
    assert chosen_point(service, MODEL, tried, point["id"]) == plan_json
    uniform = service.plan_json_of(MODEL, PrecisionPlan.uniform(5))
    assert chosen_point(service, MODEL, [], "W5") == uniform


def test_a_measurement_that_was_taken_over_leaves_nothing_on_the_page(service: Service):
    older = measure(service, MODEL, service.plan_json_of(MODEL, PrecisionPlan.uniform(2)), [], "a")
    next(older)
    newer = service.measure(MODEL, PrecisionPlan.uniform(3), "a")
    next(newer)
    assert all("status" not in part for part in list(older)[-1])


@pytest.mark.parametrize("identity", ["tried:7", "tried:-1", "tried:", "no such plan", "baseline:awq", ""])
def test_an_unknown_point_changes_nothing(service: Service, identity: str):
    assert chosen_point(service, MODEL, [], identity) is None


def test_a_measured_baseline_is_a_point_that_loads_nothing_and_says_so(
    service: Service, elastic: ElasticModel, monkeypatch
):
    opened, nf4 = service.opened[MODEL], PrecisionPlan.uniform("nf4")
    assert not any(p["kind"] == "baseline" for p in service.points(MODEL)["points"])
    payload = measured(service, PrecisionPlan.uniform(4))["estimate"]
    key = ResultKey("bitsandbytes nf4 block 64", elastic.base_identity, opened.task.id)
    opened.results.put(key, payload)
    (point,) = [p for p in service.points(MODEL)["points"] if p["kind"] == "baseline"]
    assert point["label"] == "bitsandbytes NF4" and point["kl"] == payload["kl"]
    assert point["bytes"] == elastic.sizes.deploy(nf4)
    said: list[str] = []
    monkeypatch.setattr(gr, "Info", lambda text, **_: said.append(text))
    assert chosen_point(service, MODEL, [], point["id"]) is None
    assert len(said) == 1 and "bitsandbytes NF4 has no bits per layer" in said[0]


def test_a_plan_of_another_size_is_refused(service: Service):
    with pytest.raises((PlanError, ValueError)):
        service.plan_of(MODEL, {"w": [4, 4], "a": [16, 16], "kv": 16})


def test_upload_reads_what_download_wrote(service: Service):
    plan_json = service.plan_json_of(MODEL, PrecisionPlan.of({"*.o_proj": 2}, default=7))
    file = file_of(service, MODEL, {"turn": 1, "plan": plan_json})
    assert uploaded(service, MODEL, file["text"]) == plan_json
    assert re.fullmatch(r"tiny-mixed-[\d.]+-bits\.json", file["name"])
    assert json.loads(file["text"])["note"].endswith("bytes; quality was not measured")


def test_a_plan_file_says_what_was_measured(service: Service):
    plan = PrecisionPlan.uniform(4)
    payload = measured(service, plan)["estimate"]
    plan_json = service.plan_json_of(MODEL, plan)
    note = json.loads(file_of(service, MODEL, {"turn": 1, "plan": plan_json})["text"])["note"]
    assert f"kl {payload['kl']:.4g} ±" in note and "measured on" in note


def test_a_plan_file_of_another_artifact_is_loaded_and_where_it_was_made_is_said(
    service: Service, elastic: ElasticModel, monkeypatch
):
    said = []
    monkeypatch.setattr("app.shell.plans.inform", lambda text, title: said.append(text))
    service.cards["tiny:other"] = replace(service.cards[MODEL], title="Tiny, other")
    plan = PrecisionPlan.uniform(4)
    for made_on, words in (("tiny:other", "Tiny, other"), (MODEL, "")):
        said.clear()
        assert uploaded(service, MODEL, plan.to_json(made_on)) == service.plan_json_of(MODEL, plan)
        assert words in " ".join(said) and bool(said) == bool(words)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00" * 99, b"[]", b'{"format": "quept-plan", "version": 9}', b"[" * 9999]
)
def test_a_bad_upload_changes_nothing(service: Service, content: bytes):
    assert uploaded(service, MODEL, content) is None


def test_a_link_restores_the_plan_and_a_broken_one_gives_the_plan_to_begin_with(service: Service):
    plan_json = service.plan_json_of(MODEL, PrecisionPlan.uniform(3, kv=4, embeddings=8))
    assert linked(service, encode(plan_json, MODEL)) == (MODEL, plan_json)
    start = service.plan_json_of(MODEL, service.start(MODEL))
    for query in ({"m": MODEL, "w": "!!"}, {"w": "AAAAA"}, {"a": "x"}, {}):
        assert linked(service, query) == (MODEL, start)


def test_a_link_of_an_earlier_release_to_the_ask_page_opens_the_model_of_that_page(service: Service):
    both = Service(service.models | {"other": service.models[MODEL]}, *_parts(service))
    plan_json = service.plan_json_of(MODEL, PrecisionPlan.uniform(3))
    start = service.plan_json_of(MODEL, service.start(MODEL))
    asked = {"p": "ask", "l": "W2", "r": "W4"}
    assert linked(both, asked | {"ask": "other"} | encode(plan_json, MODEL)) == ("other", start)
    assert linked(both, asked | {"ask": "other"} | encode(plan_json, "other")) == ("other", plan_json)
    assert linked(both, asked | {"ask": "gone"}) == (MODEL, start)


def _parts(service: Service) -> tuple:
    opened = service.opened[MODEL]
    return opened.sample, opened.results, Path("unused")


def shipped_front(service: Service, elastic: ElasticModel, folder: Path, **changes) -> Service:
    """A service whose model comes with a front of two plans, measured on the text that is shown."""
    estimate = measured(service, PrecisionPlan.uniform(3))["estimate"]
    points = [
        Point(
            name=f"best {bits} bits",
            budget=elastic.sizes.deploy(plan),
            bytes=elastic.sizes.deploy(plan),
            bits_per_parameter=elastic.sizes.bits_per_parameter(plan),
            chosen="refined",
            predicted={},
            measured=Estimate.from_dict(estimate | {"kl": kl}),
            uniform=None,
            plan=plan,
        )
        for bits, kl, plan in (
            (4, 0.125, PrecisionPlan.of({"*.down_proj": 5}, default=4, embeddings=6)),
            (3, 0.25, PrecisionPlan.of({"*.down_proj": 4}, default=3, embeddings=6)),
        )
    ]
    artifact, opened = elastic.artifact, service.opened[MODEL]
    front = Front(
        MODEL, artifact.weights_id, artifact.identity, artifact.group, opened.task.id, {"dtype": "float32"}
    )
    for point in points:
        front = front.with_point(point)
    replace(front, **changes).save(folder / "front.json")
    return Service({MODEL: elastic}, opened.sample, Results.open(folder / "new.sqlite"), folder)


def test_the_shipped_front_is_drawn_listed_and_loaded(service, elastic, tmp_path, monkeypatch):
    monkeypatch.setattr(elastic, "origin", Source(MODEL, MODEL, tmp_path))
    with_front = shipped_front(service, elastic, tmp_path)
    best = [p for p in with_front.points(MODEL)["points"] if p["kind"] == "best"]
    assert [(p["label"], p["kl"]) for p in best] == [("Best 3 bits", 0.25), ("Best 4 bits", 0.125)]
    offered = {plan["name"]: plan for plan in shelf(with_front, MODEL)["plans"]}
    assert offered["best 3 bits"]["kind"] == "best" and offered["best 3 bits"]["quality"] == "KL 0.25"
    assert offered["W4"]["kind"] == "uniform" and offered["full precision"]["label"] == "Full"
    assert ("Best 4 bits", "best 4 bits") in with_front.choices(MODEL)
    plan_json = chosen_point(with_front, MODEL, [], best[0]["id"])
    assert plan_json["e"] == 6 and with_front.plan_of(MODEL, plan_json).name == "best 3 bits"
    assert with_front.state(MODEL, with_front.plan(MODEL, "best 3 bits"))["estimate"]["kl"] == 0.25


def test_a_front_of_other_weights_is_left_out(service, elastic, tmp_path, monkeypatch):
    monkeypatch.setattr(elastic, "origin", Source(MODEL, MODEL, tmp_path))
    other = shipped_front(service, elastic, tmp_path, artifact="another")
    assert other.opened[MODEL].best == []
    assert all(p["kind"] != "best" for p in other.points(MODEL)["points"])


def test_two_plans_are_given_beside_each_other(service: Service, elastic: ElasticModel):
    tried = [service.plan_json_of(MODEL, PrecisionPlan.of({"*.down_proj": 6}, default=3))]
    measured(service, PrecisionPlan.uniform(4))
    own = service.plan_json_of(MODEL, PrecisionPlan.uniform(4, embeddings=8))
    request = {"turn": 3, "a": "W4", "b": "equaliser", "plan": own}
    answer = pair(service, MODEL, tried, request)
    assert json.loads(json.dumps(answer))["turn"] == 3
    assert answer["a"]["metrics"][1]["value"] > 0 and answer["b"]["metrics"] is None
    assert answer["b"]["plan"] == own and answer["b"]["label"] == "W4E8"
    assert answer["b"]["bytes"] < answer["a"]["bytes"] and answer["a"]["predicted"] is None
    assert pair(service, MODEL, tried, request | {"a": "tried:0"})["a"]["plan"] == tried[0]
    menu = dict(
        service.comparable(MODEL, [service.plan_of(MODEL, plan_json) for plan_json in tried])["choices"]
    )
    assert list(menu.values())[0] == "equaliser" and "tried:0" in menu.values()


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"a": "W4"},
        {"a": "W4", "b": "tried:0"},
        {"a": "W4", "b": ["W4"]},
        {"a": "W4", "b": "equaliser"},
        {"a": "W4", "b": "equaliser", "plan": {"w": [4]}},
        {"a": "W4", "b": "equaliser", "plan": "<b>"},
    ],
)
def test_two_plans_that_cannot_be_compared_are_refused_in_words(service: Service, request_: dict):
    answer = pair(service, MODEL, [], {"turn": 1} | request_)
    assert "a" not in answer and len(answer["error"]) > 10


def test_what_was_measured_leaves_as_a_table(service):
    plan = PrecisionPlan.uniform(4)
    *_, last = service.measure(MODEL, plan, "visitor")
    head, *rows = service.measured_table(MODEL).splitlines()
    assert head.split(",")[:2] == ["plan", "bytes"] and "kl" in head.split(",")
    (row,) = [row for row in rows if row.startswith("W4,")]
    assert float(row.split(",")[1]) == last["deploy_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion-vit", "easy-vqa"])
def test_what_was_measured_of_the_models_that_see_comes_with_them(name: str, tmp_path: Path):
    elastic = ElasticModel.open(name)
    service = Service({name: elastic}, Sample("", ""), Results.open(tmp_path / "r.sqlite"), tmp_path)
    shown = {point["id"] for point in service.points(name)["points"]}
    assert {"W8", "W4", "W3", "W2"} <= shown


def test_accuracy_is_a_quality_of_the_plot_and_the_numbers(service: Service, tmp_path: Path, monkeypatch):
    rows = [{"context": "The quick brown", "choices": [" fox", f" dog {i}"], "right": 0} for i in range(40)]
    (tmp_path / "foxes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = service.opened[MODEL].tasks["choice"]
    monkeypatch.setitem(task.given, "choices", str(tmp_path / "foxes.jsonl"))
    plan_json = service.plan_json_of(MODEL, PrecisionPlan.uniform(3))
    *_, (state, chart, tried, done) = measure(service, MODEL, plan_json, [], "a", "choice")
    assert (state["status"], state["total"], state["headline"]) == ("done", 40, "acc")
    acc = next(metric for metric in state["metrics"] if metric["name"] == "acc")
    assert acc["low"] <= acc["value"] <= acc["high"] and "became wrong" in acc["note"]
    (point,) = (point for point in chart["points"] if point["kind"] == "current")
    assert point["acc"] == acc["value"] and "kl" not in point
    assert (tried, done["task"]) == ([plan_json], "choice")
    assert service.state(MODEL, PrecisionPlan.uniform(3))["estimate"] is None, "the text was not measured"
    other = service.state(MODEL, PrecisionPlan.uniform(3), "a task of another model")
    assert other["headline"] == "kl"
