import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quept import ElasticModel, PrecisionPlan, load
from quept.artifact import Artifact, ArtifactError, Manifest
from tests.tiny import save_tiny, token_ids


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load(save_tiny("llama", tmp_path_factory.mktemp("base") / "llama"))


@pytest.fixture
def folder(loaded, tmp_path):
    """A saved artifact that lists one file of tensors."""
    tensors = bytes(range(200))
    (tmp_path / "clips.safetensors").write_bytes(tensors)
    listed = {"clips.safetensors": {"sha256": sha256(tensors).hexdigest(), "bytes": len(tensors)}}
    Artifact(replace(Artifact.rtn(loaded, 32).manifest, files=listed)).save(tmp_path)
    return tmp_path


def change_manifest(folder: Path, **entries: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("group", ["auto", "row", 16, 32])
def test_save_open_same(loaded, tmp_path, group):
    artifact = Artifact.rtn(loaded, group)
    artifact.save(tmp_path / "new" / "folder")
    again = Artifact.open(tmp_path / "new" / "folder")
    assert again == artifact and again.group == group and again.identity == artifact.identity
    plan = PrecisionPlan.uniform(3)
    with torch.no_grad():
        before = ElasticModel(loaded, artifact).view(plan)(token_ids()).logits
        after = ElasticModel.open(tmp_path / "new" / "folder").view(plan)(token_ids()).logits
    assert torch.equal(before, after)


def test_groups_are_part_of_the_identity_and_the_place_is_not(loaded, tmp_path):
    assert Artifact.rtn(loaded, 32).identity != Artifact.rtn(loaded, 16).identity
    elsewhere = replace(Artifact.rtn(loaded, 32).manifest, base="somewhere/else")
    assert Artifact(elsewhere).identity == Artifact.rtn(loaded, 32).identity


def test_a_group_that_is_none_is_refused_when_the_artifact_is_made(loaded):
    with pytest.raises(ValueError, match="group must be"):
        Artifact.rtn(loaded, 0)


def test_saving_again_replaces_and_leaves_nothing_behind(loaded, tmp_path):
    Artifact.rtn(loaded, 32).save(tmp_path)
    Artifact.rtn(loaded, 16).save(tmp_path)
    assert Artifact.open(tmp_path).group == 16
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert stat.S_IMODE((tmp_path / "manifest.json").stat().st_mode) & 0o044 == 0o044  # others may read it


def test_a_folder_with_an_artifact_is_told_from_one_without(folder, tmp_path_factory):
    assert Artifact.is_one(folder) and not Artifact.is_one(tmp_path_factory.mktemp("empty"))
    assert not any(map(Artifact.is_one, ("smollm2-135m", "org/name", "", "a\0b", "x" * 5000, __file__)))


def test_a_sound_artifact_opens(folder):
    assert list(Artifact.open(folder).manifest.files) == ["clips.safetensors"]


def test_a_newer_version_is_refused(folder):
    change_manifest(folder, format_version=5)
    with pytest.raises(ArtifactError, match="format version 5; this program reads up to 4: update it"):
        Artifact.open(folder)


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None])
def test_a_version_that_is_none_is_refused(folder, version):
    change_manifest(folder, format_version=version)
    with pytest.raises(ArtifactError, match="format_version must be a whole number from 1"):
        Artifact.open(folder)


@pytest.mark.parametrize("cut", [0, 1, 20, -3])
def test_a_truncated_manifest_is_refused(folder, cut):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ArtifactError, match="not an artifact: it is not valid JSON"):
        Artifact.open(folder)


@pytest.mark.parametrize("text", [b"\xff\xfe", b"[" * 100_000, b"9" * 10_000])
def test_a_binary_or_absurd_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(ArtifactError, match="not an artifact: it is not valid JSON"):
        Artifact.open(folder)


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"format": "quept-plan"}'])
def test_another_json_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="not an artifact: an artifact is a JSON object"):
        Artifact.open(folder)


@pytest.mark.parametrize("entry", [f.name for f in fields(Manifest) if not f.name.startswith("format")])
def test_a_missing_entry_is_named(folder, entry):
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    del data[entry]
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=f"damaged: {entry}: it is missing"):
        Artifact.open(folder)


def test_an_unknown_entry_or_method_is_named(folder):
    change_manifest(folder, method="magic")
    with pytest.raises(ArtifactError, match="method 'magic' is not known here .known: rtn"):
        Artifact.open(folder)
    change_manifest(folder, method="rtn", extra=1)
    with pytest.raises(ArtifactError, match="extra: nothing of that name"):
        Artifact.open(folder)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([f.name for f in fields(Manifest)]),
    st.recursive(
        st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
        max_leaves=5,
    ),
)
def test_no_manifest_raises_anything_but_artifact_error(folder, entry, value):
    path = folder / "manifest.json"
    original = path.read_text()
    change_manifest(folder, **{entry: value})
    try:
        Artifact.open(folder)
    except ArtifactError:
        pass
    finally:
        path.write_text(original)


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "sub/clips.safetensors", "..", "", "..\\secret", "./clips.safetensors"],
)
def test_a_file_list_that_leaves_the_folder_is_refused(folder, name):
    (folder.parent / "secret").write_bytes(b"")
    change_manifest(folder, files={name: {"sha256": sha256(b"").hexdigest(), "bytes": 0}})
    with pytest.raises(ArtifactError, match="lies outside its folder"):
        Artifact.open(folder)


def test_a_missing_a_truncated_and_a_changed_file_are_told_apart(folder):
    path = folder / "clips.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match="clips.safetensors is truncated: 199 of 200 bytes"):
        Artifact.open(folder)
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(ArtifactError, match="clips.safetensors is damaged"):
        Artifact.open(folder)
    path.unlink()
    with pytest.raises(ArtifactError, match="clips.safetensors is missing"):
        Artifact.open(folder)


def test_no_artifact_at_all_is_a_sentence(tmp_path):
    with pytest.raises(ArtifactError, match="cannot read an artifact from"):
        Artifact.open(tmp_path)


def test_the_wrong_base_is_refused(loaded, tmp_path):
    other = load(save_tiny("llama", tmp_path / "other", seed=1))
    with pytest.raises(ArtifactError, match="open it with the base it was made for"):
        ElasticModel(other, Artifact.rtn(loaded))


def test_layers_of_another_model_are_refused(loaded):
    manifest = Artifact.rtn(loaded).manifest
    with pytest.raises(ArtifactError, match="names other layers"):
        ElasticModel(loaded, Artifact(replace(manifest, layers=manifest.layers[:-1])))


KILLED = """
import os, signal, sys
from pathlib import Path
from quept.artifact import Artifact
artifact = Artifact.open(sys.argv[1])
# dies with the new manifest written and not yet in place
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
artifact.save(sys.argv[1])
"""


@pytest.mark.slow
def test_a_save_that_is_killed_leaves_the_artifact_valid(folder):
    before = Artifact.open(folder)
    command = [sys.executable, "-c", KILLED, str(folder)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONPATH": "."}, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    assert Artifact.open(folder) == before
    shutil.rmtree(folder)
