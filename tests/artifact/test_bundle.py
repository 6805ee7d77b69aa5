"""Artifacts that come with the program are found by name."""

import pytest

from quept.artifact import ArtifactError, bundle, bundled, split, variants


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "FOLDER", tmp_path)
    for variant in ("weight-only", "weight-act"):
        (tmp_path / "smollm2-135m" / variant).mkdir(parents=True)
        (tmp_path / "smollm2-135m" / variant / "manifest.json").write_text("{}")
    return tmp_path / "smollm2-135m"


def test_a_built_in_model_opens_its_first_artifact(shelf):
    assert variants("smollm2-135m") == ("weight-only", "weight-act")
    assert bundled("smollm2-135m") == shelf / "weight-only"
    assert bundled("smollm2-135m:weight-act") == shelf / "weight-act"


def test_plain_rounding_and_other_models_have_none(shelf):
    assert bundled("smollm2-135m:rtn") is bundled("org/name") is bundled("C:\\models\\mine") is None
    assert split("smollm2-135m:rtn") == ("smollm2-135m", "rtn") and split("C:\\x") == ("C:\\x", "")


def test_a_variant_that_is_none_names_those_there_are(shelf):
    with pytest.raises(
        ArtifactError, match="there is smollm2-135m:weight-only, .*weight-act, smollm2-135m:rtn"
    ):
        bundled("smollm2-135m:w4")
