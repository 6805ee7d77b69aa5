"""Calibrating classifiers of pictures: better than rounding on pictures it never saw, static grids that run
as they were learned, the same bytes when a run was cut, every family."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import linear

from quept.artifact import Artifact, ArtifactError
from quept.artifact.store import TRANSFORM
from quept.calibrate import calibrate, worse
from quept.calibrate.trainable import Trainable
from quept.cli import main
from quept.config import Recipe, RecipeError
from quept.engines.quept import Quept
from quept.models import layout_of, load
from quept.numerics.adapters import RankSchedule
from quept.numerics.static import fake_quantize_static
from quept.plan import Bits, PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import VISION, pictures, save_tiny, save_tiny_vision, tiny_vision

pytestmark = pytest.mark.slow

ALL = ("vit", "deit-distilled", "dinov2", "swin")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of pictures: noise of many kinds, some files damaged."""
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for i in range(40):
        pixels = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((36, 40), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:60])
    return folder


def recipe(data, **changes):
    """Seconds on a tiny model; entries of `changes` replace those of the recipe."""
    rates = {"adapter_rates": [1e-3] * 3, "clip_rate": 1e-2, "activation_rate": 1e-2}
    return Recipe.from_dict(
        {
            "name": "tiny",
            "note": "for tests",
            "held_out": 12,
            "images": {"source": str(data), "count": 24},
            "static": {"widths": [4, 6], "percentiles": [0.99, 1.0], "images": 16},
            "transforms": [{"kind": "reparameterisation", "strength": 0.5, "percentile": 1.0}],
            "adapters": {"groups": [[6], [4], [3]], "steps": [2, 2, 2]},
            "clip": {"start": {3: 4.0, 4: 4.0, 6: 4.0}},
            "block_wise": rates | {"batch": 8, "epochs": 3, "merge": [0.3, 0.3, 0.4], "activations": True},
            "end_to_end": rates
            | {"steps": 6, "batch": 8, "draws": [[3], [4], [6]], "activations": True, "drop": 0.25},
        }
        | changes
    )


def with_drop(data, drop):
    settings = recipe(data).to_dict()
    return recipe(data, block_wise=settings["block_wise"] | {"drop": drop})


@pytest.fixture(scope="module", params=ALL)
def run(request, data, tmp_path_factory):
    """(family, model folder, finished run of few steps)."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_tiny_vision(request.param, folder / "model")
    short = recipe(data).to_dict()
    short = recipe(
        data,
        block_wise=short["block_wise"] | {"drop": 0.5, "epochs": 1},
        end_to_end=short["end_to_end"] | {"steps": 3},
    )
    calibrate(model, short, folder / "out", device="cpu")
    return request.param, model, folder / "out"


def test_no_width_ends_worse_than_where_it_started(run):
    quality = Artifact.open(run[2]).manifest.quality
    assert set(quality) == {"W3", "W4A4", "W6A6"}
    assert all(row["kl"] <= row["kl_plain"] for row in quality.values())


def test_a_width_on_grids_that_lost_goes_back_to_plain_rounding_grids_and_all(data, tmp_path):
    """The grids cut off half of all values: worse at 6 bits than the range of each token."""
    one = one_epoch(data, transforms=[], static={"widths": [4, 6], "percentiles": [0.51], "images": 16})
    made = calibrate(save_tiny_vision("vit", tmp_path / "model"), one, tmp_path / "out", device="cpu")
    row = made.manifest.quality["W6A6"]
    assert row["kl"] == row["kl_rtn"] < row["kl_plain"] and not worse(made.manifest.quality)
    assert not any(6 in made.engine.static(name) for name in made.manifest.layers)


def test_transforms_go_where_a_width_is_better_without(data, tmp_path, monkeypatch):
    judged(monkeypatch, *3 * [0.25, 1.0, 1.0, 1.0], *3 * [0.25, 1.0])  # the second time without transforms
    model = save_tiny_vision("vit", tmp_path / "model")
    made = calibrate(model, one_epoch(data), tmp_path / "out", device="cpu")
    assert made.record is None and {row["kl"] for row in made.manifest.quality.values()} == {0.25}
    plan, x = PrecisionPlan.uniform(4, 4), pictures("vit")
    with torch.no_grad():
        views = (ElasticModel.open(f, dtype=torch.float32).view(plan)(x) for f in (tmp_path / "out", model))
        assert torch.equal(*views)


def test_a_width_that_is_better_by_chance_is_not_kept(data, tmp_path, monkeypatch):
    """What it gains is on one picture, and on another it loses half of that."""
    turns = itertools.cycle([(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.2, 1.4)])

    def found(_, p):
        return torch.cat([torch.tensor(next(turns)), torch.ones(len(p) - 2)])

    monkeypatch.setattr("quept.calibrate.comparison.divergences", found)
    model = save_tiny_vision("vit", tmp_path / "model")
    images = {"source": str(data), "count": 16}
    made = calibrate(model, one_epoch(data, held_out=20, images=images), tmp_path / "out", device="cpu")
    assert not any(layer.widths for layer in made.engine.learned.values())
    assert {row["kl"] for row in made.manifest.quality.values()} == {1.0}


def test_a_width_worse_than_plain_rounding_is_said_with_an_exit_code(data, tmp_path, monkeypatch, capsys):
    model = str(save_tiny_vision("vit", tmp_path / "model"))
    quality = {"W8A8": {"kl": 0.042, "kl_plain": 0.05, "kl_rtn": 0.0022}, "W4A4": {"kl": 1.0, "kl_rtn": 2.0}}
    plain = Artifact.rtn(load(model))
    made = Artifact(dataclasses.replace(plain.manifest, quality=quality))
    monkeypatch.setattr("quept.calibrate.calibrate", lambda *_: made)
    argv = [
        "calibrate",
        model,
        "--recipe",
        "vit-weight-act",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(argv) == 3
    assert "W8A8 came out worse than round-to-nearest" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_learning_helps_on_pictures_it_never_saw(family, data, tmp_path):
    """The mean divergence falls to between 0.35 and 0.6 of the start over seeds and kinds of products."""
    stage = recipe(data).to_dict()["block_wise"]
    stage |= {"adapter_rates": [4e-3], "activation_rate": 3e-3, "merge": [1.0], "epochs": 12, "drop": 0.5}
    one = recipe(
        data,
        static={"widths": [4], "percentiles": [0.99, 1.0], "images": 16},
        adapters={"groups": [[4]], "steps": [8]},
        clip={"start": {4: 4.0}},
        block_wise=stage,
        end_to_end=None,
    )
    calibrate(save_tiny_vision(family, tmp_path / "model"), one, tmp_path / "out", device="cpu")
    width = Artifact.open(tmp_path / "out").manifest.quality["W4A4"]
    assert width["kl"] < 0.95 * width["kl_plain"]


def test_every_block_was_tuned_and_patch_merging_too(run):
    lines = [json.loads(line) for line in (run[2] / "progress.jsonl").read_text().splitlines()]
    tuned = [line["block"] for line in lines if line["what"] == "block"]
    loaded = ElasticModel.open(run[2], device="cpu")
    assert tuned == [block.name for block in loaded.layout.blocks]
    assert any("downsample" in name for name in tuned) == (run[0] == "swin")


def judged(monkeypatch, *losses: float) -> None:
    """The comparison finds these: the base, its transform by token and on grids, as learned."""
    turns = itertools.cycle(losses)
    monkeypatch.setattr(
        "quept.calibrate.comparison.divergences", lambda _, p: torch.full((len(p),), next(turns))
    )


def one_epoch(data, **changes):
    """Block-wise only, and short."""
    stage = recipe(data).to_dict()["block_wise"] | {"epochs": 1}
    return recipe(data, block_wise=stage, end_to_end=None, **changes)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_static_grids_run_as_they_were_learned(name, data, tmp_path, monkeypatch):
    judged(monkeypatch, 1.0, 1.0, 1.0, 0.5)
    out = tmp_path / "out"
    everywhere = one_epoch(data, static={"widths": [4, 6], "percentiles": [0.99], "images": 16})
    calibrate(save_tiny_vision(name, tmp_path / "model"), everywhere, out, device="cpu")
    elastic = ElasticModel.open(out, device="cpu", dtype=torch.float32)
    view = elastic.view(PrecisionPlan.uniform(4, 4))
    for layer in elastic.layers:
        grids = elastic.artifact.engine.static(layer)
        assert set(grids) == {4, 6}
        before, *after = ((scale, int(zero)) for scale, zero in grids[4].T.tolist())
        assert len(after) == (3 if layer in elastic.layout.fused else 0)
        bound = view.get_submodule(layer)
        x = torch.randn(2, 20, bound.in_features, generator=torch.Generator().manual_seed(0))
        y = linear(fake_quantize_static(x, (before,), 4), bound.weight, bound.bias)
        expected = fake_quantize_static(y, after, 4) if after else y
        assert torch.equal(bound(x), expected)
    x = pictures(name)
    with torch.no_grad():
        assert not torch.equal(view(x), elastic.view(PrecisionPlan.uniform(4))(x))
        full = elastic.view(PrecisionPlan.full())(x)
        assert torch.allclose(full, elastic.reference(x), rtol=1e-2, atol=2e-2 * full.abs().max())


class Cut(Exception):
    """Stands for a machine that went away."""


def test_a_run_cut_anywhere_and_resumed_ends_with_the_same_bytes(data, tmp_path, monkeypatch):
    monkeypatch.setattr("quept.calibrate.job.SAVE_EVERY", 0.0)
    model, settings = save_tiny_vision("vit", tmp_path / "model"), with_drop(data, 0.5)
    calibrate(model, settings, tmp_path / "whole", device="cpu")

    def cut(stage, fraction):
        if cuts and cuts[0] in stage:
            cuts.pop(0)
            raise Cut

    cuts = ["block 1 of 2, epoch 2", "block 2 of 2, epoch 3", "end to end, step 4"]
    for _ in range(3):
        with pytest.raises(Cut):
            calibrate(model, settings, tmp_path / "cut", cut, device="cpu")
    torch.manual_seed(7)  # other random numbers than the first time, which must not matter
    calibrate(model, settings, tmp_path / "cut", cut, device="cpu")
    for name in ("learned.safetensors", "manifest.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_grids_alone_are_an_artifact_too(data, tmp_path):
    """The baseline: smallest to largest value, rounded to nearest, nothing learned."""
    model = save_tiny_vision("vit", tmp_path / "model")
    baseline = Recipe.load("vit-min-max").at(str(data))
    baseline = dataclasses.replace(baseline, held_out=8)
    artifact = calibrate(model, baseline, tmp_path / "out", device="cpu")
    assert not any(layer.widths for layer in artifact.engine.learned.values())
    elastic = ElasticModel.open(tmp_path / "out", device="cpu", dtype=torch.float32)
    seen = elastic.artifact.engine.static("blocks.0.mlp.fc2")[4]
    assert seen.shape == (2, 1) and (seen[0] * 15).item() > 0
    plain = ElasticModel.open(model, device="cpu", dtype=torch.float32)
    for bits in (2, 8):
        views = [e.view(PrecisionPlan.uniform(bits)) for e in (elastic, plain)]
        assert all(torch.equal(*(v.get_submodule(n).weight for v in views)) for n in elastic.layers)


def test_what_is_dropped_is_left_as_it_was():
    model = tiny_vision("vit").requires_grad_(False)
    schedule, name = RankSchedule(((4,),), (0,)), "blocks.0.attn.proj"
    ends = {name: {4: torch.tensor([[-1.0], [1.0]])}}
    layer = Trainable(model, layout_of(model), schedule, {}, "auto", 0, static=ends).layers[name]
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    exact, rounded = (layer(x, Bits(16, bits)) for bits in (16, 4))
    assert not torch.equal(exact, rounded)
    assert torch.allclose(layer(x, Bits(16, 4), drop=1.0), exact)
    half = layer(x, Bits(16, 4), drop=0.5)
    assert 0.3 < ((half - exact).norm() / (rounded - exact).norm()) < 0.95


def test_damaged_grids_are_refused(run):
    manifest, tensors = Artifact.open(run[2]).manifest, load_file(run[2] / "learned.safetensors")
    tensors = {name: t for name, t in tensors.items() if not name.startswith(TRANSFORM)}
    layer = manifest.layers[0]
    for bad in (
        torch.ones(3, 1),
        torch.zeros(2, 1),
        torch.full((2, 1), torch.nan),
        torch.ones(2, 1).double(),
    ):
        with pytest.raises(ValueError, match="static grids of another form"):
            Quept.read(manifest, tensors | {f"{layer}.static.4": bad})
    with pytest.raises(ValueError, match=r"unknown tensor other.4"):
        Quept.read(manifest, tensors | {f"{layer}.other.4": torch.ones(2, 1)})


def test_an_artifact_of_another_program_version_says_so(run, tmp_path):
    manifest = json.loads((run[2] / "manifest.json").read_text())
    newer = {"format_version": manifest["format_version"] + 1}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | newer))
    with pytest.raises(ArtifactError, match="update it"):
        Artifact.open(tmp_path)


def test_recipes_and_models_must_be_of_one_kind(data, tmp_path):
    vision, language = save_tiny_vision("vit", tmp_path / "v"), save_tiny("llama", tmp_path / "l")
    with pytest.raises(ValueError, match="is a language model, and the recipe tiny calibrates on pictures"):
        calibrate(language, recipe(data), tmp_path / "out", device="cpu")
    with pytest.raises(ValueError, match="classifies pictures, and the recipe tiny calibrates on text"):
        calibrate(vision, Recipe.load("tiny"), tmp_path / "out", device="cpu")
    with pytest.raises(ValueError, match="give a folder of them"):
        calibrate(vision, Recipe.load("vit-weight-act"), tmp_path / "out", device="cpu")
    with pytest.raises(ValueError, match="neither a folder with pictures"):
        calibrate(vision, recipe(tmp_path / "nowhere"), tmp_path / "out", device="cpu")
    with pytest.raises(RecipeError, match="calibrates on pictures"):
        recipe(data).at({"squad-passages": 1}, "--text")
    with pytest.raises(RecipeError, match="calibrates on text"):
        Recipe.load("tiny").at(str(data))


def test_the_recipe_for_pictures_has_the_published_settings(data):
    assert set(ALL) < set(VISION)  # others are wired as one of these, or calibrated where they are defined
    published = Recipe.load("vit-weight-act").at(str(data))
    assert published.block_wise.drop == 0.5 and published.block_wise.epochs == 20
    assert published.data.count == 1024 and published.block_wise.batch == 32
