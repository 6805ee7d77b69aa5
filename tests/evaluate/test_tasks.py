"""What was measured for a release is read as metrics, to the digit."""

import json
from pathlib import Path

import pytest

from quept.evaluate import TASKS

ASSETS = Path(__file__).parent.parent.parent / "assets"
KINDS = {"smollm2-135m": "text", "fashion-vit": "image", "easy-vqa": "vqa"}
SHIPPED = sorted((*ASSETS.rglob("results.json"), *ASSETS.rglob("baselines.json")))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ASSETS)))
def test_shipped_results_are_read_as_metrics_to_the_digit(path):
    task = TASKS[KINDS[path.relative_to(ASSETS).parts[0]]](None)
    for row in json.loads(path.read_text())["results"]:
        payload = row["payload"]
        assert task.result.from_dict(payload), row["name"]
        for metric in task.metrics(payload):
            assert metric.value == payload[metric.name]
            assert metric.low - 1e-9 <= metric.value <= metric.high + 1e-9
        found = {metric.name: metric for metric in task.metrics(payload)}
        full = "ppl" if "ppl" in found else "top1"
        assert found[full].full == payload[f"{full}_ref"] and found["kl"].full == 0


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_without_a_measurement_the_metrics_are_the_same_without_values(task):
    blank = task(None).metrics({})
    assert task.headline in [metric.name for metric in blank]
    assert {(m.value, m.low, m.high, m.note) for m in blank} == {(None, None, None, "")}
