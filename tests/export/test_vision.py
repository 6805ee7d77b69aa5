"""The export of a classifier weighs what was computed, its values are the view's, and timm builds the model
from it."""

import json

import pytest
import torch
from safetensors.torch import safe_open, save_file
from timm import create_model

from quept.artifact import Artifact
from quept.engines.quept import LayerParameters, Quept
from quept.export import export, exporter, open_packed
from quept.models import load
from quept.numerics.adapters import RankSchedule
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import VISION, close, pictures, save_tiny_vision

PLANS = {
    "full": PrecisionPlan.full(),
    **{f"W{bits}": PrecisionPlan.uniform(bits) for bits in range(2, 9)},
    "mixed": PrecisionPlan.of({"*.attn.*": 5, "*blocks.0.mlp.fc1*": 16}, default=3, name="mixed"),
    "embeddings": PrecisionPlan.of({"*.mlp.*": 4}, embeddings=6),
}


@pytest.fixture(scope="module", params=VISION)
def elastic(request, tmp_path_factory):
    folder = save_tiny_vision(request.param, tmp_path_factory.mktemp(request.param) / request.param)
    return ElasticModel.open(folder, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_tensor_bytes_are_the_deploy_size_and_values_the_views(elastic, plan, tmp_path):
    path = tmp_path / "out.safetensors"
    export(elastic, plan, path)
    with safe_open(path, framework="pt") as file:
        written = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118  not a mapping
    assert written == elastic.sizes.deploy(plan)
    assert path.stat().st_size == exporter("packed").sizes(elastic).deploy(plan)
    state, view = open_packed(path).state(), elastic.view(plan)
    for name in (*elastic.layers, *elastic.embeddings):
        weight = view.get_submodule(name).weight
        assert torch.equal(state[f"{name}.weight"], weight), name


def test_timm_builds_the_model_from_it(elastic, tmp_path):
    plan = PrecisionPlan.uniform(3, embeddings=5)
    read = export(elastic, plan, tmp_path / "out.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(read.config))
    (tmp_path / "out.safetensors").unlink()
    save_file(read.state(), tmp_path / "model.safetensors")
    plain, x = create_model(f"local-dir:{tmp_path}", pretrained=True).eval(), pictures(elastic.title)
    with torch.no_grad():
        assert close(elastic.view(plan)(x), plain(x))


def test_static_grids_go_along_where_the_plan_rounds_activations(tmp_path):
    model = save_tiny_vision("vit", tmp_path / "vit")
    grids = {"blocks.0.attn.qkv": {4: torch.tensor([[0.5, 0.25, 0.25, 0.125], [7, 8, 0, 15]])}}
    plain = ElasticModel.open(model, device="cpu", dtype=torch.float32)
    empty, schedule = torch.zeros(0, 0), RankSchedule(((4,),), (0,))
    learned = {
        name: LayerParameters.rounded(schedule, empty, empty, {}, (), grids.get(name))
        for name in plain.layers
    }
    elastic = ElasticModel(
        load(model), Artifact(plain.artifact.manifest, Quept("auto", learned)), device="cpu"
    )
    assert not export(elastic, PrecisionPlan.uniform(4), tmp_path / "weights.safetensors").static
    read = export(elastic, PrecisionPlan.uniform(4, 4), tmp_path / "both.safetensors")
    assert read.static == {"blocks.0.attn.qkv": ((0.5, 7), (0.25, 8), (0.25, 0), (0.125, 15))}
    assert open_packed(tmp_path / "both.safetensors").static == read.static
