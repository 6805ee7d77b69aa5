"""An engine whose settings are averages, and which says what each token got, is one file (routed.py here)
and one entry of the table: plans, streams, tasks and the command line carry both."""

from __future__ import annotations

import pytest
import torch

from app.side import setting_choices, setting_named
from quept import ElasticModel, PlanError, PrecisionPlan, load
from quept.artifact import Artifact
from quept.cli import main
from quept.engines import ENGINES
from quept.engines.reports import Reports
from quept.evaluate.tasks import Sample, TextTask, metrics_of
from quept.runtime.generate import Sampling, Token
from tests.engines.routed import ENTRY, RoutedLinear
from tests.tiny import save_tiny, token_ids

BITS = "bits per token"
PLAN = "spread:3.5"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QUEPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(ENGINES, "spread", ENTRY)
    return save_tiny("llama", tmp_path / "llama")


@pytest.fixture
def elastic(folder) -> ElasticModel:
    loaded = load(folder)
    return ElasticModel(loaded, Artifact.unlearned("spread", loaded), dtype=torch.float32, device="cpu")


def spent(elastic: ElasticModel, plan: PrecisionPlan) -> float:
    with torch.no_grad(), Reports().listen() as found:
        elastic.view(plan)(token_ids())
    return found.means()[BITS]


def test_a_plan_says_an_average_and_menus_offer_a_few(elastic):
    plan = PrecisionPlan.parse(PLAN)
    assert plan.name == "spread at 3.5 bits" and PrecisionPlan.from_json(plan.to_json()) == plan
    mixed = PrecisionPlan.of({"*.down_proj": "spread:6"}, default=PLAN)
    assert PrecisionPlan.from_json(mixed.to_json()) == mixed and elastic.view(mixed)
    offered = [value for _, value in setting_choices(elastic)]
    assert (
        offered[-2:] == ["spread:3", "spread:5"] and setting_named("spread:4.2").name == "spread at 4.2 bits"
    )
    with pytest.raises(
        PlanError, match="'spread:9' is not a plan: give .*nf4, int8, .*spread:3, spread:5 or"
    ):
        PrecisionPlan.parse("spread:9")


def test_all_averages_share_what_is_stored(elastic):
    few, many = (PrecisionPlan.parse(text) for text in (PLAN, "spread:7"))
    assert elastic.sizes.deploy(few) == elastic.sizes.deploy(many)
    elastic.view(few)
    made = elastic.bank.made
    elastic.view(many)
    assert elastic.bank.made == made == len(elastic.layers)


def test_more_bits_are_spent_where_more_are_asked_for(elastic):
    assert spent(elastic, PrecisionPlan.parse("spread:2")) == 2
    few, many = (spent(elastic, PrecisionPlan.parse(text)) for text in (PLAN, "spread:7"))
    assert 2 < few < many < 8


def test_nobody_listens_and_nothing_is_heard_outside(elastic):
    view, found = elastic.view(PrecisionPlan.parse(PLAN)), Reports()
    assert any(isinstance(module, RoutedLinear) for module in view.modules())
    with torch.no_grad():
        view(token_ids())
    assert found.means() == {}


def test_every_token_of_a_stream_says_what_it_got(elastic):
    stream = elastic.stream(PrecisionPlan.parse(PLAN), "Hello", Sampling(temperature=0, max_tokens=3))
    tokens = [event for event in stream if isinstance(event, Token)]
    assert tokens and all(2 <= token.reports[BITS] <= 8 for token in tokens)
    assert len({token.reports[BITS] for token in tokens}) > 1
    stream = elastic.stream(PrecisionPlan.uniform(4), "Hello", Sampling(temperature=0, max_tokens=1))
    assert list(stream)[-1].reports == {}


def test_a_task_measures_it_beside_its_own_metrics(elastic, tmp_path):
    plan = PrecisionPlan.parse(PLAN)
    task = TextTask(elastic, tmp_path, {"text": Sample("The quick brown fox. " * 9, "foxes", 128, 64)})
    *_, estimate = task.estimates(elastic.view(plan), plan)
    assert 2 < estimate[BITS].value < 8 and estimate[BITS].label == "Bits per token"
    assert task.read(estimate.to_dict()) == estimate
    assert [m.name for m in metrics_of(estimate.payload)] == ["ppl", "kl", "same_top", BITS]


def test_the_command_line_prints_a_column_for_it(folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("The quick brown fox. " * 9)
    asked = ["--text", str(tmp_path / "text.txt"), "--tokens", "64", "--context", "64"]
    assert main(["evaluate", str(folder), "--plan", "W4", "--plan", PLAN, *asked]) == 0
    _, head, w4, routed = capsys.readouterr().out.splitlines()
    assert "bits per token" in head and routed.startswith("spread at 3.5 bits")
