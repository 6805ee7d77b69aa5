"""A calibration run: better than rounding on text it never saw, the same bytes when it was cut and resumed,
bound to its base, and never half an artifact."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from quept.artifact import Artifact, ArtifactError
from quept.calibrate import CalibrationError, calibrate, calibrate_rtn
from quept.config import Recipe
from quept.numerics.grid import group_size
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import FAMILIES, save_tiny, token_ids

pytestmark = pytest.mark.slow

TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs! "


def recipe(text, **changes):
    """Seconds on a tiny model; `changes` go into the end-to-end stage."""
    stage = {
        "steps": 12,
        "batch": 2,
        "context": 48,
        "adapter_rates": [0.0, 2e-3, 2e-3, 2e-3],
        "clip_rate": 2e-2,
        "draws": [[2], [3, 4], [5, 6]],
        "mixed_every": 4,
    }
    return Recipe.from_dict(
        {
            "name": "tiny",
            "note": "for tests",
            "group": 32,
            "text": {"sources": {str(text): 1}},
            "adapters": {"groups": [[7, 8], [5, 6], [3, 4], [2]], "steps": [0, 4, 4, 4]},
            "clip": {"start": {2: 1.0, 3: 3.0, 4: 4.0, 5: 5.0, 6: 6.0}},
            "end_to_end": stage | changes,
        }
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    shuffled = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    path.write_text(" ".join(f"{i} {TEXT[int(i) % 40 :]}" for i in shuffled))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def run(folder, text, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    calibrate(folder, recipe(text, steps=40), out, device="cpu")
    return out


def test_low_widths_beat_rounding_on_text_that_was_held_out(run):
    quality = Artifact.open(run).manifest.quality
    for plan in ("W2", "W3"):
        assert quality[plan]["kl"] < 0.95 * quality[plan]["kl_rtn"], plan
    assert all(row["kl"] <= row["kl_plain"] for row in quality.values()) and set(quality) >= {"W5", "W8"}


def test_the_opened_model_is_the_one_that_was_compared(run):
    artifact = Artifact.open(run)
    elastic = ElasticModel.open(run, device="cpu", dtype=torch.float32)
    view = elastic.view(PrecisionPlan.uniform(2))
    for layer in elastic.layers:
        source = elastic.base.get_submodule(layer).weight
        group = group_size(source.shape[1], artifact.group)
        expected = artifact.engine.learned[layer].quantize(source, 2, group)[1]
        assert torch.equal(view.get_submodule(layer).weight, expected)
        assert not torch.equal(
            expected, artifact.engine.learned[layer].without(2).quantize(source, 2, group)[1]
        )
    full = elastic.view(PrecisionPlan.full())(token_ids()).logits
    assert torch.equal(full, elastic.reference(token_ids()))


def test_widths_of_no_adapter_and_no_clip_are_plain_rounding(run, folder, tmp_path):
    calibrate_rtn(folder, tmp_path, group=32)
    calibrated, plain = (ElasticModel.open(s, device="cpu", dtype=torch.float32) for s in (run, tmp_path))
    for bits in (7, 8):
        views = [e.view(PrecisionPlan.uniform(bits)) for e in (calibrated, plain)]
        assert all(
            torch.equal(*(v.get_submodule(layer).weight for v in views)) for layer in calibrated.layers
        )


class Cut(Exception):
    """Stands for a machine that went away."""


def test_a_run_cut_at_any_step_and_resumed_ends_with_the_same_bytes(folder, text, tmp_path, monkeypatch):
    monkeypatch.setattr("quept.calibrate.job.SAVE_EVERY", 0.0)
    scaling = {"kind": "scaling", "bits": [3, 4], "grid": 4}
    scaled = Recipe.from_dict(recipe(text, steps=6).to_dict() | {"transforms": [scaling]})
    calibrate(folder, scaled, tmp_path / "whole", device="cpu")

    def cut(stage, fraction):
        if any(f"step {n} " in stage for n in cuts):
            cuts.pop(0)
            raise Cut

    cuts = [1, 4, 6]
    for _ in range(3):
        with pytest.raises(Cut):
            calibrate(folder, scaled, tmp_path / "cut", cut, device="cpu")
        assert not Artifact.is_one(tmp_path / "cut")
    calibrate(folder, scaled, tmp_path / "cut", cut, device="cpu")
    for name in ("learned.safetensors", "manifest.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    left = {path.name for path in (tmp_path / "cut").iterdir()}
    assert left == {"learned.safetensors", "manifest.json", "progress.jsonl"}


def test_a_folder_of_another_run_is_left_alone(folder, text, tmp_path, run):
    def cut(stage, fraction):
        if "step 2 " in stage:
            raise Cut

    with pytest.raises(Cut):
        calibrate(folder, recipe(text), tmp_path, cut, device="cpu")
    with pytest.raises(CalibrationError, match="holds another run"):
        calibrate(folder, recipe(text, clip_rate=1e-2), tmp_path, device="cpu")
    with pytest.raises(CalibrationError, match="already holds an artifact"):
        calibrate(folder, recipe(text), run, device="cpu")


def test_another_base_is_refused(run, tmp_path):
    other = save_tiny("llama", tmp_path / "other", seed=1)
    shutil.copytree(run, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest | {"base": str(other)}))
    with pytest.raises(ArtifactError, match="was made for .* with fingerprint"):
        ElasticModel.open(tmp_path / "run", device="cpu")


@pytest.mark.parametrize("files", [0, 1])
def test_killed_while_writing_leaves_no_half_artifact(run, tmp_path, monkeypatch, files):
    """Killed before the first file is in place, and between the two."""
    whole, replace_file, done = Artifact.open(run), os.replace, []

    def killed(*names):
        if len(done) == files:
            raise Cut
        done.append(replace_file(*names))

    monkeypatch.setattr("quept.artifact.store.os.replace", killed)
    with pytest.raises(Cut):
        whole.store(tmp_path)
    monkeypatch.undo()
    assert not Artifact.is_one(tmp_path)
    whole.store(tmp_path)
    assert Artifact.open(tmp_path) == whole
    with pytest.raises(
        ArtifactError, match="already holds an artifact"
    ):  # two files cannot be replaced at once
        whole.store(tmp_path)
    assert Artifact.open(tmp_path) == whole


def test_artifacts_that_read_the_same_tensors_otherwise_are_told_apart(run):
    whole = Artifact.open(run)
    widths = {name: tuple(b for b in w if b != 4) for name, w in whole.manifest.widths.items()}
    other = replace(whole, manifest=replace(whole.manifest, widths=widths))
    turned = replace(whole, manifest=replace(whole.manifest, transforms=({"kind": "norms"},)))
    assert len({whole.identity, other.identity, turned.identity}) == 3


def test_a_log_cut_in_the_middle_of_a_line_is_gone_on_with(folder, text, tmp_path):
    def cut(stage, fraction):
        if "step 2 " in stage:
            raise Cut

    with pytest.raises(Cut):
        calibrate(folder, recipe(text, steps=3), tmp_path, cut, device="cpu")
    with (tmp_path / "progress.jsonl").open("a") as log:
        log.write('{"what": "end to e')
    calibrate(folder, recipe(text, steps=3), tmp_path, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["what"] == "end to end"][-1] == 3


def damage(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "change",
    [lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""],
    ids=["cut", "flipped", "empty"],
)
def test_damaged_tensors_are_refused_in_words(run, tmp_path, change):
    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run" / "learned.safetensors", change)
    with pytest.raises(ArtifactError, match="truncated|damaged"):
        Artifact.open(tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_with_step_and_plan(folder, text, tmp_path):
    with pytest.raises(CalibrationError, match=r"step 2 of 12, (W\d|mixed): .* checkpoint is kept"):
        calibrate(folder, recipe(text, adapter_rates=[0.0, 1e30, 1e30, 1e30]), tmp_path, device="cpu")


def test_evaluation_text_and_short_text_are_refused(folder, tmp_path):
    for source, why in (("boolq-passages", "what plans are measured on"), ("nothing", "neither built in")):
        with pytest.raises(ValueError, match=why):
            calibrate(folder, recipe(source), tmp_path / source, device="cpu")
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(ValueError, match="less than one window"):
        calibrate(folder, recipe(tmp_path / "short.txt"), tmp_path / "c", device="cpu")
    (tmp_path / "repeated.txt").write_text(TEXT * 2)
    with pytest.raises(ValueError, match="too short to hold 4 windows"):
        calibrate(folder, recipe(tmp_path / "repeated.txt"), tmp_path / "d", device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_calibrates_and_opens(family, text, tmp_path):
    folder = save_tiny(family, tmp_path / "model")
    calibrate(folder, recipe(text, steps=3, batch=1), tmp_path / "run", device="cpu")
    elastic = ElasticModel.open(tmp_path / "run", device="cpu")
    plan = PrecisionPlan.of({elastic.layers[0]: 2, elastic.layers[-1]: 3}, default=5)
    assert elastic.view(plan)(token_ids()).logits.isfinite().all()


def test_weights_and_activations_on_a_rotated_model(folder, text, tmp_path):
    rotated = recipe(text, activations=True, wider=0.25, steps=6)
    steps = [{"kind": "norms"}, {"kind": "rotation", "seed": 0, "heads": True, "online": True}]
    data = rotated.to_dict()
    data["end_to_end"] |= {"draws": [[4], [5, 6], [7, 8]], "adapter_rates": [1e-4, 1e-4, 1e-3]}
    data |= {
        "transforms": steps,
        "adapters": {"groups": [[7, 8], [5, 6], [4]], "steps": [2, 2, 2]},
        "clip": {"start": {4: 4.0}},
    }
    calibrate(folder, Recipe.from_dict(data), tmp_path / "run", device="cpu")
    artifact = Artifact.open(tmp_path / "run")
    assert artifact.record.steps == tuple(steps) and set(artifact.manifest.quality) >= {"W4A4", "W8A8"}
    calibrated, plain = (
        ElasticModel.open(s, device="cpu", dtype=torch.float32) for s in (tmp_path / "run", folder)
    )
    full = [e.view(PrecisionPlan.full())(token_ids()).logits for e in (calibrated, plain)]
    torch.testing.assert_close(*full, rtol=0, atol=0.02)  # rotated weights were rounded to float16 once
    assert torch.equal(calibrated.reference(token_ids()), full[1])
