"""Numbers belong to all that decides them: the same tensors read in another way are another model."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from quept import ElasticModel, PrecisionPlan, load
from quept.__main__ import main
from quept.artifact import Artifact, ArtifactError
from quept.evaluate import ResultKey, Results
from quept.evaluate.shipped import load_shipped
from tests.tiny import save_tiny, save_tiny_vision


def changed(folder: Path, other: Path, file: str = "config.json", **entries) -> Path:
    """A copy of a model's folder with other entries in one of its files."""
    shutil.copytree(folder, other)
    content = json.loads((other / file).read_text())
    (other / file).write_text(json.dumps(content | entries))
    return other


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("base") / "llama")


@pytest.mark.parametrize(
    "entries",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 20.0}},
        {"rms_norm_eps": 0.5},
        {"hidden_act": "gelu"},
    ],
    ids=str,
)
def test_another_config_is_another_model_of_the_same_tensors(folder, tmp_path, entries):
    one, other = load(folder), load(changed(folder, tmp_path / "other", **entries))
    assert one.fingerprint == other.fingerprint and one.identity != other.identity


def test_what_only_describes_a_model_does_not_change_it(folder, tmp_path):
    other = changed(folder, tmp_path / "other", transformers_version="4.0", architectures=["Mine"])
    assert load(other).identity == load(folder).identity == load(folder).identity


def test_another_tokenizer_is_another_model_of_texts(folder, tmp_path):
    other = changed(folder, tmp_path / "other", "tokenizer.json", normalizer={"type": "Lowercase"})
    assert load(other).identity != load(folder).identity


def test_preprocessing_and_buffers_count_for_a_classifier(tmp_path):
    one = load(save_tiny_vision("vit", tmp_path / "one"))
    other = load(save_tiny_vision("vit", tmp_path / "other", mean=[0.4]))
    assert one.fingerprint == other.fingerprint and one.identity != other.identity


def test_the_grid_is_part_of_an_elastic_models_identity_and_not_of_its_bases(folder):
    loaded = load(folder)
    one, other = (ElasticModel(loaded, Artifact.rtn(loaded, group)) for group in (16, 32))
    assert one.base_identity == other.base_identity == loaded.identity != one.identity != other.identity


def test_results_are_not_those_of_the_same_tensors_under_another_config(
    folder, tmp_path, monkeypatch, capsys
):
    other = changed(folder, tmp_path / "other", rms_norm_eps=0.5)
    text = tmp_path / "words.txt"
    text.write_text("quick brown foxes jump over lazy dogs " * 9)

    def figures(model: Path, cache: str, *more: str) -> list:
        monkeypatch.setenv("QUEPT_CACHE", str(tmp_path / cache))
        argv = ["evaluate", str(model), "--plan", "W3", "--text", str(text), "--tokens", "64"]
        assert main([*argv, "--context", "32", "--json", *more]) == 0
        (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
        return [row["ppl"], row["kl"]]

    first, right = figures(folder, "shared"), figures(other, "fresh")
    assert figures(other, "shared") == right != first
    assert figures(other, "shared", "--again") == right


def test_again_computes_full_precisions_answers_again(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QUEPT_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "words.txt"
    text.write_text("quick brown foxes jump over lazy dogs " * 9)
    argv = ["evaluate", str(folder), "--text", str(text), "--tokens", "64", "--context", "32"]
    assert main(argv) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/reference").rglob("*.safetensors")}
    assert main([*argv, "--again"]) == 0
    assert len(before) == 2
    assert {path: path.stat().st_mtime_ns for path in before} != before


def test_an_artifact_is_not_opened_on_its_base_under_another_config(folder, tmp_path):
    Artifact.rtn(load(folder), 32).save(tmp_path / "artifact")
    other = load(changed(folder, tmp_path / "other", rms_norm_eps=0.5))
    with pytest.raises(ArtifactError, match=r"rms_norm_eps: 1e-06; .* says 0.5: open it with the base"):
        ElasticModel.open(tmp_path / "artifact", base=other)
    assert ElasticModel.open(tmp_path / "artifact").fingerprint == other.fingerprint


def test_an_artifact_from_before_configs_were_recorded_opens(folder, tmp_path):
    Artifact.rtn(load(folder), 32).save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["config"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format_version": 2}))
    elastic = ElasticModel.open(tmp_path)
    assert elastic.identity == ElasticModel(load(folder), Artifact.rtn(load(folder), 32)).identity


@pytest.mark.parametrize("name", ["fashion-vit:weight-act", "fashion-vit:rtn"])
def test_shipped_results_name_the_artifact_and_are_found_under_the_models_identity(name, tmp_path):
    elastic, results = ElasticModel.open(name, dtype=torch.float32), Results.open(tmp_path / "r.sqlite")
    file = Path("assets") / name.replace(":rtn", "").replace(":", "/") / "results.json"
    shipped = json.loads(file.read_text())
    assert shipped["model"] == elastic.artifact.identity
    assert load_shipped(results, file, elastic) == len(shipped["results"])
    key = ResultKey(PrecisionPlan.uniform(4).key(elastic.layers), elastic.identity, shipped["data"])
    assert results.get(key).payload["kl"] > 0
