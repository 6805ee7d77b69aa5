"""A new task is one file with a subclass and one entry in the table: this file, and `TASKS`. The service's
numbers, the chart, `quept evaluate` and the results store then have it, beside the model's other tasks."""

import json
from dataclasses import asdict, dataclass

import pytest
import torch

from app.components.chart import Chart
from app.components.numbers import Numbers
from app.service import Service
from quept.cli import main
from quept.evaluate import TASKS, EvalTask, Metric, Results, Sample
from quept.evaluate.results import read_as
from quept.plan import PrecisionPlan
from quept.zoo import cache_dir
from tests.app.tiny import tiny_elastic
from tests.tiny import save_tiny

PROMPTS = torch.tensor([[3, 5, 7], [2, 4, 6], [9, 9, 9]])


@dataclass(frozen=True)
class Even:
    """Of `tokens` prompts the share that goes on with an even token; right: their number."""

    tokens: int
    right: int

    from_dict = classmethod(read_as)


class ToyTask(EvalTask):
    """How often the next token is even."""

    name, kind, models, unit = "toy", "language", "language models", "prompts"
    result, headline = Even, "even"
    id, total, conditions = "three prompts", len(PROMPTS), {"data": "made up"}

    def payloads(self, view, make_cache, gate):
        right = 0
        for done, ids in enumerate(PROMPTS, 1):
            with gate(), torch.inference_mode():
                right += int(view(input_ids=ids[None]).logits[0, -1].argmax()) % 2 == 0
            yield asdict(Even(done, right))

    def metrics(self, payload):
        share = payload["right"] / payload["tokens"] if payload else None
        ends = (share, share) if payload else (None, None)
        return (Metric("even", "Even", "Even next tokens", share, "higher", *ends, unit="share"),)


@pytest.fixture(autouse=True)
def entry(monkeypatch, tmp_path):
    monkeypatch.setenv("QUEPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(TASKS, "toy", ToyTask)


def test_the_service_measures_draws_and_keeps_it(tmp_path):
    elastic, results = tiny_elastic(), Results.open(tmp_path / "results.sqlite")
    sample = Sample("The quick brown fox. " * 40, "foxes", tokens=128, context=64)
    service, plan = Service({"tiny": elastic}, sample, results, tmp_path), PrecisionPlan.uniform(3)
    text, *_, toy = service.tasks("tiny")
    assert text == ("Text: Perplexity, Mean KL, Same top token", "text") and toy == ("Toy: Even", "toy")
    *_, done = service.measure("tiny", plan, "a", task="toy")
    assert (done["status"], done["done"], done["unit"], done["conditions"]) == (
        "done",
        3,
        "prompts",
        "made up, 3 prompts, float32",
    )
    assert [(m["name"], m["value"]) for m in done["metrics"]] == [("even", done["estimate"]["right"] / 3)]
    assert json.dumps(Numbers(render=False).postprocess(done), allow_nan=False)
    (again,) = service.measure("tiny", plan, "b", task="toy")
    assert again["status"] == "stored" and again["estimate"] == done["estimate"]
    assert results.get(service.opened["tiny"].tasks["toy"].key(plan)).payload == done["estimate"]
    drawn = Chart(render=False).postprocess(service.points("tiny", task="toy"))
    assert [point["even"] for point in drawn["points"]] == [done["metrics"][0]["value"]]
    assert service.comparable("tiny", task="toy")["headline"] == "even"
    assert service.compared("tiny", plan, task="toy")["metrics"] == done["metrics"]
    assert service.state("tiny", plan)["estimate"] is None, "the first task is another one"


def test_the_command_line_measures_and_keeps_it(tmp_path, capsys):
    model = str(save_tiny("llama", tmp_path / "tiny"))
    assert main(["evaluate", model, "--task", "toy", "--json"]) == 0
    conditions, head, row, last = capsys.readouterr().out.splitlines()
    assert "on made up, 3 prompts" in conditions and head.split()[3:5] == ["even", "(95"] and "%" in row
    (result,) = json.loads(last)["results"]
    assert result["tokens"] == 3 and (cache_dir() / "results.sqlite").exists()
    assert main(["evaluate", model, "--task", "toy", "--text", "x"]) == 2
    assert "the task 'toy' takes no --text" in capsys.readouterr().err
    assert main(["evaluate", model, "--task", "joy"]) == 2
    assert "give --task text or choice or code or german or chats or toy" in capsys.readouterr().err
