"""What a person types for a model is understood in one place, with what lies beside it."""

import json
from dataclasses import asdict

import pytest

from quept.artifact import ArtifactError, Manifest, Source, resolve_source, source, variants
from quept.plan import PlanError, PrecisionPlan

MODEL = "smollm2-135m"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ASSETS", tmp_path)
    for variant in ("weight-only", "weight-act"):
        (tmp_path / MODEL / variant).mkdir(parents=True)
        (tmp_path / MODEL / variant / "manifest.json").write_text("{}")
    return tmp_path / MODEL


def test_a_built_in_model_opens_its_first_artifact(shelf):
    assert variants(MODEL) == ("weight-only", "weight-act")
    assert resolve_source(MODEL) == Source(MODEL, MODEL, shelf / "weight-only")
    assert resolve_source(f"{MODEL}:weight-act") == Source(f"{MODEL}:weight-act", MODEL, shelf / "weight-act")


def test_plain_rounding_and_other_models_have_none(shelf):
    assert resolve_source(f"{MODEL}:rtn") == Source(f"{MODEL}:rtn", MODEL)
    for other in ("org/name", "C:\\models\\mine", "nothing:rtn", "", "a\0b"):
        assert resolve_source(other) == Source(other, other)


def test_a_variant_that_is_none_names_those_there_are(shelf):
    with pytest.raises(
        ArtifactError, match="there is smollm2-135m:weight-only, .*weight-act, smollm2-135m:rtn"
    ):
        resolve_source(f"{MODEL}:w4")


def test_the_folder_of_an_artifact_names_its_base(shelf, tmp_path):
    mine = tmp_path / "runs" / "mine"
    mine.mkdir(parents=True)
    manifest = Manifest("rtn", MODEL, "0" * 64, 64, ("layer",))
    (mine / "manifest.json").write_text(json.dumps(asdict(manifest)))
    found = resolve_source(mine)
    assert found == Source(str(mine), MODEL, mine) and found.name == "mine" and found.entry.name == MODEL


def test_what_lies_beside_an_artifact_comes_before_what_lies_beside_its_base(shelf):
    found, plain = resolve_source(MODEL), resolve_source(f"{MODEL}:rtn")
    assert found.beside("results.json") is plain.beside("results.json") is None
    for folder in (shelf, shelf / "weight-only"):
        (folder / "results.json").touch()
    (shelf / "baselines.json").touch()
    assert found.beside("results.json") == shelf / "weight-only" / "results.json"
    assert plain.beside("results.json") == shelf / "results.json"
    assert found.beside("baselines.json") == shelf / "baselines.json"


def test_a_plan_made_for_the_base_or_under_the_name_that_was_typed_fits(shelf):
    for asked in (MODEL, f"{MODEL}:rtn", f"{MODEL}:weight-act"):
        names = resolve_source(asked).models
        for name in (MODEL, asked):
            PrecisionPlan.from_json(PrecisionPlan.uniform(4).to_json(name), names)
        with pytest.raises(PlanError, match=f"made for the model 'other'; the one open here is '{MODEL}'"):
            PrecisionPlan.from_json(PrecisionPlan.uniform(4).to_json("other"), names)
