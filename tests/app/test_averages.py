"""The control of an average: it tells what it costs, is there for models that route alone, and sets the right
side."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from app.conversation import Answer, Frame
from app.pages.averages import _read, routing
from app.pages.chat_status import reported
from app.side import setting_choices
from quept import ElasticModel, PlanError, PrecisionPlan, load
from quept.artifact import Artifact
from quept.engines.mobiquant.engine import MoBiQuant, Routes
from quept.engines.mobiquant.router import Router
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load(save_tiny("llama", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def elastic(loaded):
    """Two averages; the router of every layer looks at the norm of its input."""
    leaders = {name: name for name in loaded.layout.layers}
    routers = {name: Router("norm", {"offset": torch.zeros(3)}) for name in leaders}
    averages, kl = torch.tensor([3.0, 5.0]), torch.tensor([0.5, 0.1])
    thresholds = torch.zeros(2, len(routers), 3)
    bits = averages[:, None].expand(-1, len(routers)).contiguous()
    artifact = Artifact.unlearned("mobiquant", loaded, 32)
    routes = Routes(leaders, routers, averages, thresholds, bits, kl)
    quality = {f"W{b}": {"kl": 4.0**-b, "kl_plain": 1.0, "kl_rtn": 1.0} for b in (2, 4, 6, 8)}
    object.__setattr__(artifact, "engine", MoBiQuant(32, {}, routes))
    object.__setattr__(artifact.manifest, "quality", quality)
    return ElasticModel(loaded, artifact, device="cpu", dtype=torch.float32)


@pytest.fixture
def context(elastic, loaded):
    plain = ElasticModel(loaded, Artifact.rtn(loaded, 32), device="cpu")
    return SimpleNamespace(
        held={"routed": None, "plain": None},
        service=SimpleNamespace(models={"routed": elastic, "plain": plain}),
    )


def test_it_says_what_an_average_costs_reads_and_keeps(context, elastic):
    few, many = (routing(context, "routed", average) for average in (3.0, 5.0))
    assert (few["kl"], many["kl"]) == (0.5, pytest.approx(0.1))
    read = [_read(elastic, dict.fromkeys(elastic.layers, bits)) for bits in (2, 3, 5, 8)]
    kept = elastic.sizes.deploy(PrecisionPlan.uniform("routed:3"))
    assert read == sorted(read) and read[-2] < kept == pytest.approx(read[-1])
    assert few["kept"] == many["kept"] and len(few["layers"]) == 14
    assert [bits for bits, _ in few["depths"]] == [2, 4, 6, 8]


def test_models_that_do_not_route_have_none_and_offer_no_averages(context):
    assert routing(context, "plain", 3.0) == routing(context, "not opened", 3.0) == {}
    offered = {
        name: [word for _, word in setting_choices(model)] for name, model in context.service.models.items()
    }
    assert "routed:3" in offered["routed"] and "routed:3" not in offered["plain"]
    with pytest.raises(PlanError, match="a setting of models with nested codes and routers"):
        context.service.models["plain"].view(PrecisionPlan.parse("routed:3"))


def test_tokens_of_an_answer_say_what_they_got():
    spans = ((0, 2), (2, 3))
    routed = Answer(state="done", text="Hello", spans=spans, bits=(2.0, 3.456))
    plain = Answer(state="done", text="Hello", spans=spans)
    left, right = reported([PrecisionPlan.full()] * 2, Frame((plain, routed))).values()
    assert left["bits"] == [] and right["bits"] == [[0, 2, 2.0], [2, 3, 3.46]]
    facts = [{name: value for name, value, _ in side["facts"]} for side in (left, right)]
    assert "Bits a token" not in facts[0] and facts[1]["Bits a token"] == "2.73"
