"""Convolutional classifiers: 1 x 1 convolutions and heads are layers of a plan, batch norm is folded."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm import create_model

from quept.artifact import Artifact
from quept.data.base import DataError, Wanted
from quept.data.distilled import Distilled, _distance
from quept.engines.rtn import Rtn
from quept.export import export, exporter
from quept.models import fingerprint_of, load, vision
from quept.models.identity import identity_of
from quept.plan import PlanError, PrecisionPlan
from quept.runtime import ElasticModel

SHAPES = ("test_efficientnet", "mobilenetv3_small_050")
X = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def save_tiny_cnn(architecture: str, folder: Path):
    """A folder of this architecture with random weights and statistics; returns timm's own model too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(architecture, pretrained=False, num_classes=7).eval()
        for name, tensor in model.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
    model.half().float()
    folder.mkdir(parents=True)
    about = model.pretrained_cfg | {"input_size": (3, 64, 64), "num_classes": 7}
    config = {"architecture": architecture, "num_classes": 7, "pretrained_cfg": about}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: t.half() if t.is_floating_point() else t for k, t in model.state_dict().items()},
              folder / "model.safetensors")  # fmt: skip
    return model


@pytest.fixture(scope="module", params=SHAPES)
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cnn") / request.param
    plain = save_tiny_cnn(request.param, folder)
    loaded = load(folder)
    return ElasticModel(loaded, Artifact.rtn(loaded), device="cpu"), plain


@torch.no_grad()
def test_the_folded_model_answers_as_timms(both):
    elastic, plain = both
    wanted = plain(X)
    assert elastic.dtype == torch.float32  # on every processor
    found = elastic.view(PrecisionPlan.full())(X)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert not any("Norm" in type(m).__name__ for m in elastic.base.modules())


@torch.no_grad()
def test_a_network_whose_norms_differ_where_weights_are_read_answers_as_timm_reads_it(tmp_path):
    save_tiny_cnn("fbnetc_100", tmp_path / "cnn")  # with weights its batch norm has another epsilon
    wanted = create_model(f"local-dir:{tmp_path / 'cnn'}", pretrained=True).eval()(X)
    found = load(tmp_path / "cnn").model.float()(X)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@torch.no_grad()
def test_a_view_is_the_model_with_rounded_matrices(both):
    elastic, _ = both
    view = elastic.view(PrecisionPlan.uniform(3, embeddings=4))
    for name in (*elastic.layers, *elastic.embeddings):
        weight = elastic.base.get_submodule(name).weight
        rounded = Rtn("auto").quantize(name, weight.flatten(1), 4 if name in elastic.embeddings else 3)[1]
        place = view.get_submodule(name)
        found = getattr(place, "layer", place).weight
        assert torch.equal(found.flatten(1), rounded), name


def test_artifacts_that_were_made_when_folding_rounded_to_16_bits_still_fit(tmp_path):
    save_tiny_cnn(SHAPES[0], tmp_path / "cnn")
    config = vision.config_of(str(tmp_path / "cnn"))
    loaded, (rounded, _) = load(tmp_path / "cnn"), vision.read(str(tmp_path / "cnn"), config, wide=False)
    assert {p.dtype for p in rounded.parameters()} == {torch.float16}
    assert loaded.fingerprint == fingerprint_of(rounded)
    assert loaded.identity != identity_of(rounded, loaded.fingerprint, loaded.config, None)


def test_plans_speak_of_1x1_convolutions_and_the_head_stage_by_stage(both):
    elastic, plain = both
    convolutions = {n: m for n, m in plain.named_modules() if isinstance(m, torch.nn.Conv2d)}
    ones = {n for n, m in convolutions.items() if m.kernel_size == (1, 1)}
    assert set(elastic.layers) == ones | {"classifier"}
    assert set(elastic.embeddings) == set(convolutions) - ones
    stages = [block.name for block in elastic.layout.blocks]
    assert stages[-2:] == ["conv_head", "classifier"] and all(n.startswith("blocks.") for n in stages[:-2])


def test_what_convolves_over_neighbors_stays_at_8_bits(both):
    layout = both[0].layout
    plan = PrecisionPlan.uniform(4, 6).keeping(layout.vision_layers)
    assert (plan.name, plan.embeddings) == ("W4A6E8", 8)
    for own in (PrecisionPlan.full(), PrecisionPlan.uniform(4, embeddings=5)):
        assert own.keeping(layout.vision_layers) is own


def test_bytes_are_those_that_are_written(both, tmp_path):
    elastic, _ = both
    plan = PrecisionPlan.of({elastic.layers[0]: 2}, default=5, embeddings=8)
    assert export(elastic, plan, tmp_path / "out.safetensors").nbytes == elastic.sizes.deploy(plan)
    with pytest.raises(PlanError, match="batch norm that was folded"):
        exporter("hf").write(elastic, plan, tmp_path / "out")


def test_onnxruntime_answers_as_the_view(both, tmp_path):
    pytest.importorskip("onnx", reason="the package onnx writes these files: pip install onnx")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime runs them: pip install onnxruntime")
    elastic, target = both[0], exporter("onnx")
    plan = target.nearest(elastic, PrecisionPlan.uniform(4))
    target.write(elastic, plan, tmp_path / "a.onnx")
    session = runtime.InferenceSession((tmp_path / "a.onnx").read_bytes())
    with torch.no_grad():
        wanted = elastic.view(plan)(X)
    found = torch.from_numpy(session.run(None, {"pixels": X.numpy()})[0])
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_distilled_pictures_come_near_the_statistics_and_follow_from_the_seed(both):
    loaded = both[0]._base
    few, many = (Distilled(count=4, steps=steps, batch=5, smooth=0.0) for steps in (1, 15))
    data, again = (many.read(loaded, Wanted(held_out=1), lambda *_: None) for _ in range(2))
    made = torch.cat([data.held_out["x"], data.block_wise["x"]])
    assert made.shape == (5, 3, 64, 64) and torch.equal(data.block_wise["x"], again.block_wise["x"])
    begun = few.read(loaded, Wanted(held_out=1), lambda *_: None)
    noise = torch.cat([begun.held_out["x"], begun.block_wise["x"]])
    assert _off(loaded, made) < _off(loaded, noise)


def test_models_without_batch_norm_are_refused_in_words(tmp_path):
    from tests.tiny import save_tiny_vision

    loaded = load(save_tiny_vision("vit", tmp_path / "vit"))
    with pytest.raises(DataError, match="give a folder of pictures with --data"):
        Distilled(count=1, steps=1).read(loaded, Wanted(), lambda *_: None)


@torch.no_grad()
def _off(loaded, x) -> float:
    """How far the channels are from their statistics in training."""
    found, model = [], copy.deepcopy(loaded.model).float()
    for name, wanted in loaded.vision.statistics.items():

        def keep(_, __, out, wanted=wanted):
            found.append(float(_distance(out, *wanted)))

        model.get_submodule(name).register_forward_hook(keep)
    model(x)
    return sum(found)
