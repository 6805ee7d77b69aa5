"""A new engine is one file (sign.py here) and one entry of the table: plans say it, models run and weigh it,
artifacts keep it."""

from __future__ import annotations

import pytest
import torch

from quept import ElasticModel, PlanError, PrecisionPlan, load
from quept.artifact import Artifact
from quept.engines import ENGINES, Entry
from tests.engines.sign import Sign
from tests.tiny import save_tiny, token_ids


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(ENGINES, "sign", Entry("tests.engines.sign:Sign", {"sign": "Signs"}))
    return load(save_tiny("llama", tmp_path / "llama"))


def opened(loaded, artifact=None) -> ElasticModel:
    artifact = artifact or Artifact.unlearned("sign", loaded)
    return ElasticModel(loaded, artifact, dtype=torch.float32, device="cpu")


@torch.no_grad()
def logits(view) -> torch.Tensor:
    return view(token_ids()).logits


def test_a_plan_says_it_and_a_view_multiplies_by_it(loaded):
    plan = PrecisionPlan.parse("sign")
    assert plan.name == "Signs" and PrecisionPlan.from_json(plan.to_json()) == plan
    elastic = opened(loaded)
    view = elastic.view(plan)
    name = elastic.layers[0]
    weight = loaded.model.get_submodule(name).weight.float()
    expected = torch.where(weight >= 0, 1.0, -1.0) * weight.abs().mean(1, keepdim=True).half().float()
    assert torch.equal(view.get_submodule(name).weight, expected)
    assert not torch.equal(logits(view), logits(elastic.view(PrecisionPlan.full())))


def test_layers_and_embeddings_beside_it_have_settings_of_their_own(loaded):
    elastic = opened(loaded)
    plan = PrecisionPlan.of({elastic.layers[0]: 16}, default="sign", embeddings=8, kv=4)
    assert torch.isfinite(logits(elastic.view(plan))).all()
    assert elastic.sizes.deploy(plan) > elastic.sizes.deploy(PrecisionPlan.uniform("sign", embeddings=8))


def test_its_bytes_are_those_of_what_is_stored(loaded):
    elastic, plan = opened(loaded), PrecisionPlan.uniform("sign")
    stored = sum(elastic.packed(name, "sign").nbytes for name in elastic.layers)
    full = PrecisionPlan.full()
    dense = 2 * sum(elastic.sizes.weights.values())
    assert elastic.sizes.deploy(plan) == elastic.sizes.deploy(full) - dense + stored


def test_its_artifact_is_saved_and_opened_and_answers_the_same(loaded, tmp_path):
    artifact, plan = Artifact.unlearned("sign", loaded), PrecisionPlan.uniform("sign")
    artifact.save(tmp_path / "artifact")
    again = ElasticModel.open(tmp_path / "artifact", dtype=torch.float32, device="cpu")
    assert isinstance(again.artifact.engine, Sign) and again.identity == opened(loaded).identity
    assert torch.equal(logits(again.view(plan)), logits(opened(loaded, artifact).view(plan)))


def test_it_serves_models_of_other_artifacts_whole(loaded):
    other, plan = opened(loaded, Artifact.rtn(loaded)), PrecisionPlan.uniform("sign")
    assert torch.equal(logits(other.view(plan)), logits(opened(loaded).view(plan)))
    assert other.sizes.deploy(plan) == opened(loaded).sizes.deploy(plan)
    signs = opened(loaded)
    assert signs.filed_under(PrecisionPlan.uniform(4)) == ("rtn group auto W4", signs.base_identity)
    assert torch.equal(
        logits(signs.view(PrecisionPlan.uniform(4))), logits(other.view(PrecisionPlan.uniform(4)))
    )
    with pytest.raises(PlanError, match="setting of the whole model"):
        other.view(PrecisionPlan.of({"*.o_proj": 4}, default="sign"))
