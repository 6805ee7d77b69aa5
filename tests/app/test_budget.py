"""A budget from the browser: the best plan within it and within the limits, or a sentence; and the plans that
the slider runs through are the same in the browser as in Python."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from app.budget import constraints_of
from app.components.budget import Budget
from app.components.widget import FOLDER
from app.payloads import NOT_UNDERSTOOD, BudgetRequest
from app.service import Sample, Service
from quept.allocate.solve.solver import path
from quept.evaluate import Results
from quept.export import exporter
from quept.plan import ACTIVATION_BITS, FULL, PrecisionPlan
from quept.runtime import ElasticModel
from tests.allocate.test_browser_agrees import node
from tests.app.tiny import tiny_table

MODEL = "tiny"


@pytest.fixture
def service(elastic: ElasticModel, tmp_path: Path) -> Service:
    sample = Sample("The quick brown fox jumps over the lazy dog. " * 40, "foxes", tokens=256, context=64)
    made = Service({MODEL: elastic}, sample, Results.open(tmp_path / "results.sqlite"), tmp_path)
    made.opened[MODEL].sensitivity = tiny_table(elastic)
    return made


def middle(elastic: ElasticModel) -> int:
    return elastic.sizes.deploy(PrecisionPlan.uniform(4))


def answered(service: Service, budget, **limits) -> tuple[PrecisionPlan, dict]:
    answer = service.solve(MODEL, {"serial": 7, "budget": budget} | limits)
    assert "error" not in answer, answer
    assert json.loads(json.dumps(answer)) == answer and answer["serial"] == 7
    return service.plan_of(MODEL, {"kv": 16} | answer["plan"]), answer


def test_the_answer_fits_and_is_at_least_as_good_as_what_the_slider_showed(service, elastic):
    table, steps = service.opened[MODEL].sensitivity, path(service.opened[MODEL].sensitivity, elastic.sizes)
    for share in (0.8, 0.9, 1, 1.2, 1.4):
        budget = int(share * middle(elastic))
        plan, answer = answered(service, budget)
        assert elastic.sizes.deploy(plan) <= answer["budget"] == budget
        shown = steps.plan(steps.fitting(budget))
        assert table.total(plan) <= table.total(shown) * (1 + 1e-9)


def test_words_mean_what_they_say(service, elastic):
    megabytes = middle(elastic) / 1e6
    assert answered(service, f"{megabytes:.6f} MB")[0] == answered(service, middle(elastic))[0]
    bits = elastic.sizes.bits_per_parameter(PrecisionPlan.uniform(4))
    assert answered(service, f"{bits:.4f} bits")[1]["budget"] == pytest.approx(middle(elastic), rel=1e-4)
    plan, _ = answered(service, "at most 5 % worse")
    predicted = service.opened[MODEL].predicted(plan)
    assert predicted["ppl"] <= 1.05 * 20.0


def test_a_budget_above_full_precision_is_full_precision(service, elastic):
    full = elastic.sizes.deploy(PrecisionPlan.full())
    plan, answer = answered(service, 3 * full)
    assert answer["budget"] == full
    assert plan.key(elastic.layers) == PrecisionPlan.full().key(elastic.layers)


def test_a_budget_above_full_precision_is_said_to_be_more_than_it_takes(service, elastic):
    full = elastic.sizes.deploy(PrecisionPlan.full())
    for words, more in ((f"{2 * full / 1e6:.3f} MB", True), ("100 %", False), ("50 %", False)):
        assert ("more than the whole model takes" in answered(service, words)[1]["note"]) == more


def test_locked_layers_keep_their_bits_and_ties_hold(service, elastic):
    pins = [[0, 8], [3, 2], [-1, 6]]
    plan, _ = answered(service, middle(elastic), pins=pins)
    bits = [b.weights for b in plan.resolve(elastic.layers).values()]
    assert (bits[0], bits[3], plan.embeddings) == (8, 2, 6)
    tied, _ = answered(service, middle(elastic), ties="qkv")
    for block in elastic.layout.blocks:
        of = {role: tied.resolve(elastic.layers)[name].weights for role, name in block.layers.items()}
        assert of["q"] == of["k"] == of["v"] and of["gate"] == of["up"]
    whole, _ = answered(service, middle(elastic), ties="block")
    for block in elastic.layout.blocks:
        assert len({whole.resolve(elastic.layers)[name] for name in block.layers.values()}) == 1


def test_floors_and_ceilings_are_given_by_the_parts_of_a_model(service, elastic):
    parts = {part["name"]: part["keys"] for part in service.slider(MODEL)["parts"]}
    assert set(parts) == {*elastic.layout.roles, "embeddings", "KV cache"}
    for role in elastic.layout.roles:
        ends = {name for block in elastic.layout.blocks for name in block.of(role)}
        assert ends == {n for n in elastic.layers if any(fnmatchcase(n, key) for key in parts[role])}
    rows = {block: {bits: 2.0**-bits for bits in range(2, 9)} for block in elastic.cached_blocks}
    service.opened[MODEL].sensitivity = tiny_table(elastic, cache=rows)
    floor, ceiling = dict.fromkeys(parts["down"], 6), dict.fromkeys(parts["q"], 3)
    plan, answer = answered(service, middle(elastic), floor=floor, ceiling=ceiling | {"kv": 8})
    bits = plan.resolve(elastic.layers)
    for block in elastic.layout.blocks:
        assert bits[block.layers["down"]].weights >= 6 and bits[block.layers["q"]].weights <= 3
    assert set(plan.resolve_cache(elastic.cached_blocks).values()) == {8} and answer["plan"]["kv"] == 8


def test_a_budget_with_a_context_says_what_keys_and_values_take_of_it(service, elastic):
    rows = {block: {bits: 4.0**-bits for bits in range(2, 9)} for block in elastic.cached_blocks}
    service.opened[MODEL].sensitivity = tiny_table(elastic, cache=rows)
    room = (middle(elastic) + elastic.sizes.token[6] * 200) / 1e6
    plan, answer = answered(service, f"{room:.6f} MB with 200 tokens")
    held = elastic.sizes.cache(plan, 200)
    assert elastic.sizes.deploy(plan) + held <= answer["budget"] and "kv" in answer["plan"]
    assert answer["note"].startswith(f"{held / 1e6:.1f} MB of it for the keys and values of 200 tokens.")


def test_a_file_of_constraints_is_read_and_one_that_is_none_leaves_the_slider(service):
    limits = {"pin": {"*.down_proj": 8}, "tie": "qkv"}
    text = json.dumps({"format": "quept-constraints", "version": 1} | limits)
    told = service.slider(MODEL, {"turn": 1, "file": text})
    assert told["said"] == limits and told["path"] and not told["error"]
    told = service.slider(MODEL, {"turn": 2, "file": "{}"})
    assert told["path"] and "said" not in told and "not a file of constraints" in told["error"]
    for limit in ("pin", "floor", "ceiling"):
        told = service.slider(MODEL, {"turn": 3, limit: {"*.c_fc": 4}})
        assert told["path"] is None and "'*.c_fc' fits no layer" in told["error"]


def test_bits_are_placed_by_the_sensitivities_that_are_asked_for(service, elastic):
    opened = service.opened[MODEL]
    assert service.slider(MODEL)["tables"] == [] and opened.heat["others"] == []
    costs = {
        n: {b: row[b] * (1000 if n == elastic.layers[0] else 1) for b in row}
        for n, row in opened.sensitivity.layers.items()
    }
    other = replace(opened.sensitivity, layers=costs, data=opened.sensitivity.data | {"text": "own-words"})
    opened.other_tables = {"own-words": other}
    offered = service.slider(MODEL, {"turn": 1})["tables"]
    assert [name for name, _ in offered] == ["", "own-words"] and offered[1][1] == "its own words"
    usual, own = (answered(service, middle(elastic), table=table)[0] for table in ("", "own-words"))
    first = elastic.layers[0]
    assert own.resolve(elastic.layers)[first].weights > usual.resolve(elastic.layers)[first].weights
    assert "not understood" in service.solve(MODEL, {"serial": 1, "budget": 10**6, "table": "x"})["error"]
    del opened.heat
    (shown,) = opened.heat["others"]
    assert shown["title"] == "its own words" and first in shown["agreement"]
    assert len(shown["sensitivity"]) == len(elastic.layers)


def test_embeddings_stay_at_16_bits_when_they_shall(service, elastic):
    assert answered(service, middle(elastic))[0].embeddings < FULL
    assert answered(service, middle(elastic), full_embeddings=True)[0].embeddings == FULL


def test_activations_go_with_the_weights_only_where_they_were_measured(service, elastic):
    _, answer = answered(service, middle(elastic), activations=16)
    assert set(answer["plan"]) == {"w", "e"}
    inputs = {name: dict.fromkeys(ACTIVATION_BITS, 0.0) for name in elastic.layers}
    service.opened[MODEL].sensitivity = tiny_table(elastic, activations=inputs)
    _, answer = answered(service, middle(elastic), activations="as weights")
    assert answer["plan"]["a"] == [max(4, bits) for bits in answer["plan"]["w"]]


def test_too_small_a_budget_is_told_the_smallest(service, elastic):
    answer = service.solve(MODEL, {"serial": 1, "budget": 1})
    least = service.slider(MODEL)["path"]["start"]["bytes"]
    assert "plan" not in answer and f"{least / 1e6:.1f}" in answer["error"]
    assert answer["error"][0].isupper() and answer["error"].endswith(".")


def test_a_measured_plan_that_is_known_to_be_better_is_the_answer_and_said(service, elastic):
    assert answered(service, middle(elastic))[1]["note"] == ""
    good = {"W4": {"kl": 1e-9, "ppl": 20.0, "same_top": 0.99}}
    service.opened[MODEL].sensitivity = tiny_table(elastic, whole=good)
    plan, answer = answered(service, middle(elastic))
    assert plan.name == "W4" and answer["note"].startswith("W4, a uniform plan: its measured KL of 1e-09")
    locked, answer = answered(service, middle(elastic), pins=[[0, 8]])
    assert locked.name != "W4" and answer["note"] == ""


@pytest.mark.parametrize(
    "request_",
    [
        {"budget": None},
        {"budget": -1},
        {"budget": float("nan")},
        {"budget": True},
        {"budget": [1]},
        {"budget": "sixty"},
        {"budget": "x" * 10_000},
        {"budget": 10**6, "ties": "all"},
        {"budget": 10**6, "ties": ["qkv"]},
        {"budget": 10**6, "activations": 3},
        {"budget": 10**6, "activations": {"a": 1}},
        {"budget": 10**6, "pins": "all"},
        {"budget": 10**6, "pins": [[0]]},
        {"budget": 10**6, "pins": [[0, 9]]},
        {"budget": 10**6, "pins": [[99, 4]]},
        {"budget": 10**6, "pins": [[-2, 4]]},
        {"budget": 10**6, "pins": [["0", 4]]},
        {"budget": 10**6, "pins": [[0, 4]] * 1000},
        {"budget": 10**6, "pin": {"*": 9}},
        {"budget": 10**6, "floor": {"x" * 301: 4}},
        {"budget": 10**6, "ceiling": [4]},
        {"budget": 10**6, "kv": "8"},
    ],
)
def test_what_is_no_budget_is_answered_in_words(service, request_):
    answer = service.solve(MODEL, {"serial": 2} | request_)
    assert answer["serial"] == 2 and "plan" not in answer
    assert 10 < len(answer["error"]) < 400
    if request_["budget"] == 10**6:  # it is the limits that are wrong, then
        assert service.slider(MODEL, {"turn": 1} | request_)["error"]


def test_limits_that_contradict_each_other_leave_the_slider_without_a_path(service):
    told = service.slider(MODEL, {"turn": 3, "ties": "qkv", "pins": [[0, 4], [1, 6]]})
    assert told["path"] is None and told["turn"] == 3
    assert "share one width" in told["error"]


def test_a_model_without_a_table_says_so(service):
    service.opened[MODEL].sensitivity = None
    assert service.slider(MODEL)["path"] is None
    assert "sensitivity table" in service.slider(MODEL)["error"]
    assert "sensitivity table" in service.solve(MODEL, {"serial": 1, "budget": 10**6})["error"]
    assert "sensitivity table" in service.opened[MODEL].heat["empty"]


def test_the_browser_walks_the_path_as_python_does(service, elastic):
    request = {"turn": 1, "ties": "qkv", "pins": [[6, 8]]}
    told = service.slider(MODEL, request)["path"]
    constraints = constraints_of(service.opened[MODEL], BudgetRequest.read(request))
    steps = path(service.opened[MODEL].sensitivity, elastic.sizes, constraints)
    low, high = told["start"]["bytes"], told["steps"][-1][2]
    budgets = [low + i * (high - low) // 40 for i in range(41)]
    script = f"""
        {(FOLDER / "path.js").read_text()}
        const path = {json.dumps(told)};
        console.log(JSON.stringify({json.dumps(budgets)}.map((bytes) => planWithin(path, bytes))));
        const ends = endsOf(path);
        console.log(JSON.stringify(Array.from({{ length: 101 }}, (_, i) => bytesAt(ends, i / 100))));
        console.log(JSON.stringify(ticksOf(ends, 0.1)));
    """
    out = subprocess.run([node(), "-"], input=script, capture_output=True, text=True, check=True).stdout
    there, sizes, ticks = map(json.loads, out.splitlines())
    for budget, plan in zip(budgets, there, strict=True):
        here = steps.plan(steps.fitting(budget))
        assert service.plan_json_of(MODEL, here)["w"] == plan["w"] and here.embeddings == plan["e"]
        assert elastic.sizes.deploy(here) == plan["bytes"] <= budget
    assert sizes == sorted(sizes) and (sizes[0], sizes[-1]) == (low, high)
    assert ticks == sorted(ticks) and (ticks[0], ticks[-1]) == (low, high)


def test_the_box_is_json_and_its_templates_are_constant(service):
    box = Budget(path=service.slider(MODEL))
    assert json.dumps(box.props["path"], allow_nan=False)
    for way_in in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert way_in not in (FOLDER / "budget.js").read_text()
    for mark in ("${", "{{", "`", "\\", "@keyframes"):
        assert mark not in (FOLDER / "budget.css").read_text()


@pytest.mark.parametrize("target", ["packed", "mlx", "compressed-tensors"])
def test_a_budget_for_a_file_is_met_by_the_file_and_the_browser_weighs_it_alike(
    target, service, elastic, tmp_path
):
    sizes = service.opened[MODEL].file_sizes(target)
    four = exporter(target).nearest(elastic, PrecisionPlan.uniform(4))
    plan, answer = answered(service, sizes.deploy(four), target=target)
    file = service.slider(MODEL, {"target": target})["file"]
    script = f"""
        {(FOLDER / "path.js").read_text("utf-8")}
        console.log(fileBytes({json.dumps(file)}, {json.dumps(answer["plan"])}, [2, 3, 4, 5, 6, 7, 8, 16]));
        console.log(fileBytes({json.dumps(file)}, {json.dumps(answer["plan"] | {"e": 99})}, [2, 16]));
    """
    out = subprocess.run([node(), "-"], input=script, capture_output=True, text=True, check=True).stdout
    written = exporter(target).write(elastic, plan, tmp_path / "out").nbytes
    assert out.split() == [str(written), "null"] and written <= answer["budget"]


def test_a_format_that_is_not_there_is_not_understood(service):
    asked = {"serial": 1, "budget": "1 MB", "target": "ggml"}
    assert service.solve(MODEL, asked)["error"] == f"{NOT_UNDERSTOOD}."
