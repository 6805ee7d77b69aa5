"""Round-to-nearest as an artifact: a calibrated folder opens to the same model; nothing is overwritten
silently."""

import pytest
import torch

from quept.artifact import Artifact, ArtifactError
from quept.calibrate import CalibrationError, calibrate_rtn
from quept.models import LoadError
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import save_tiny, token_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("group", [32, "row", "auto"])
def test_the_artifact_opens_to_the_model_it_was_made_of(folder, tmp_path, group):
    made = calibrate_rtn(folder, tmp_path / "run", group=group)
    assert made.group == group and made == Artifact.open(tmp_path / "run")
    elastic = ElasticModel.open(tmp_path / "run", device="cpu", dtype=torch.float32)
    assert elastic.artifact.group == group
    assert elastic.view(PrecisionPlan.uniform(4))(token_ids()).logits.isfinite().all()


def test_calibrating_again_is_no_conflict(folder, tmp_path):
    assert calibrate_rtn(folder, tmp_path) == calibrate_rtn(folder, tmp_path)


def test_another_artifact_is_not_overwritten(folder, tmp_path):
    calibrate_rtn(folder, tmp_path, group=32)
    with pytest.raises(CalibrationError, match="already holds another artifact"):
        calibrate_rtn(folder, tmp_path, group="row")
    assert Artifact.open(tmp_path).group == 32


def test_what_cannot_be_done_is_said_in_words(folder, tmp_path):
    with pytest.raises(ValueError, match="group must be"):
        calibrate_rtn(folder, tmp_path / "b", group=0)
    with pytest.raises(LoadError):
        calibrate_rtn(tmp_path / "nothing", tmp_path / "c")
    assert not list(tmp_path.iterdir())
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="not an artifact"):
        calibrate_rtn(folder, tmp_path / "d")
