"""Our scores are lm-evaluation-harness's on the same items; skipped where it is not installed."""

import json

import pytest
import torch

from quept import ElasticModel, PrecisionPlan
from quept.cli import main
from quept.evaluate.tasks.choice import ChoiceTask, answer_log_probs
from tests.tiny import save_tiny

ROWS = [
    {"context": "A cat says", "choices": [" meow", " woof, I think", " a"], "right": 0},
    {"context": "The dog", "choices": [" ran.", " is."], "right": 1},
    {"context": "one two three", "choices": [" four", " three two one", " a dog", " five"], "right": 0},
] * 4
TASK = """
task: made_up
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{context}}"
doc_to_choice: choices
doc_to_target: right
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "made_up.yaml").write_text(TASK % rows)
    return rows, tmp_path / "tasks"


def test_predictions_are_those_of_the_harness(files, tmp_path):
    pytest.importorskip("lm_eval")
    from quept.evaluate.harness import harness

    rows, folder = files
    elastic = ElasticModel.open(save_tiny("llama", tmp_path / "tiny"), device="cpu", dtype=torch.float32)
    plan = PrecisionPlan.uniform(4)
    theirs = harness(elastic.view(plan), elastic.tokenizer, ["made_up"], include=folder)
    task = ChoiceTask(elastic, tmp_path / "cache", {"choices": str(rows)})
    *_, ours = task.estimates(elastic.view(plan), plan)
    assert theirs["results"]["made_up"]["acc,none"] == pytest.approx(ours["acc"].value)
    assert theirs["results"]["made_up"]["acc_norm,none"] == pytest.approx(ours["acc_norm"].value)
    batch = task.choices.batch(0)
    found = answer_log_probs(elastic.view(plan), batch)["log_probs"]
    samples = sorted(theirs["samples"]["made_up"], key=lambda sample: sample["doc_id"])
    said = [
        float(one[0][0] if isinstance(one[0], (tuple, list)) else one[0])
        for s in samples
        for one in s["resps"]
    ]
    assert torch.allclose(found, torch.tensor(said), atol=2e-4)


def test_without_the_harness_the_command_says_what_to_install(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    monkeypatch.setenv("QUEPT_CACHE", str(tmp_path / "cache"))
    model = str(save_tiny("llama", tmp_path / "tiny"))
    assert main(["evaluate", model, "--lm-eval", "arc_easy"]) == 2
    assert "pip install lm-eval" in capsys.readouterr().err
