"""A vision-language model on the Explore page: answers measured, with and without questions beside it."""

import json
from pathlib import Path

import pytest
import torch

from app.components.chart import Chart
from app.components.numbers import Numbers
from app.service import Sample, Service
from quept.data.easy_vqa import Question, Questions, save_questions
from quept.evaluate import Results
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny_vlm import save_tiny_vlm

MODEL = "tiny"
NO_QUESTIONS = "no questions with answers lie beside this model"
SHARES = {"top1", "top1_low", "top1_high", "same_top", "kl"}


def opened(folder: Path, tmp_path: Path) -> Service:
    elastic = ElasticModel.open(folder, device="cpu", dtype=torch.float32)
    return Service({MODEL: elastic}, Sample("", ""), Results.open(tmp_path / "results.sqlite"), tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = save_tiny_vlm("llava", tmp_path_factory.mktemp("answers") / "llava")
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    asked = ("what shape is there?", "circle"), ("is there a red shape?", "no")
    every = tuple(Question(*asked[i % 2], i // 6) for i in range(24))
    save_questions(folder / "questions.safetensors", Questions("easy-VQA, test", pixels, every))
    return folder


def test_plans_are_measured_on_the_questions_and_drawn(folder, tmp_path):
    service = opened(folder, tmp_path)
    for plan in (PrecisionPlan.full(), PrecisionPlan.uniform(3), PrecisionPlan.uniform(4, 8, kv=4)):
        states = list(service.measure(MODEL, plan, "a"))
        done = states[-1]
        assert done["status"] == "done" and done["unit"] == "questions"
        assert done["estimate"]["tokens"] == 24 and set(done["estimate"]) >= SHARES
        assert {kind: t["questions"] for kind, t in done["estimate"]["types"].items()} == {
            "shape": 12,
            "colour present": 12,
        }
        assert done["conditions"] == "easy-VQA, test, the first 24 questions, float32"
        assert done["metrics"][0]["full"] == done["estimate"]["top1_ref"]
        assert "shape " in done["metrics"][0]["detail"]
        assert json.dumps(Numbers(render=False).postprocess(done), allow_nan=False)
    assert list(service.measure(MODEL, plan, "b"))[0]["status"] == "stored"
    points = service.points(MODEL, [], plan)
    drawn = Chart(render=False).postprocess(points)
    assert [m["name"] for m in drawn["metrics"]] == ["top1", "kl", "same_top"]
    assert {p["id"] for p in drawn["points"]} == {"full precision", "current"}
    assert all(p["top1_high"] >= p["top1"] >= p["top1_low"] for p in drawn["points"])


def test_all_widths_are_offered_presets_spare_what_sees_and_budgets_say_why_not(folder, tmp_path):
    service = opened(folder, tmp_path)
    described = service.describe(MODEL)
    assert 4 in described["kv_bits"] and 8 in described["activation_bits"]
    layers = service.models[MODEL].layers
    seen = service.models[MODEL].layout.sections["vision"]
    for plan in service.opened[MODEL].presets:
        assert all(plan.resolve(layers)[name].weights >= 8 for name in seen)
    assert any("w4-kv4" in plan.name for plan in service.opened[MODEL].presets)
    assert "sensitivity table" in service.slider(MODEL)["error"]


def test_without_questions_everything_but_figures_works(tmp_path):
    service = opened(save_tiny_vlm("qwen2-vl", tmp_path / "qwen"), tmp_path)
    states = list(service.measure(MODEL, PrecisionPlan.uniform(3), "a"))
    assert [s["status"] for s in states] == ["idle"] and states[0]["message"] == NO_QUESTIONS
    assert states[0]["conditions"] == NO_QUESTIONS and service.points(MODEL)["points"] == []
    assert service.state(MODEL, service.start(MODEL))["deploy_bytes"] > 0
