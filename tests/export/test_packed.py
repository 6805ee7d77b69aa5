"""The file weighs what was computed, and its values are the view's, bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import safe_open, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from quept.export import ExportError, export, open_packed
from quept.export.packed import Packed
from quept.plan import PlanError, PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import FAMILIES, save_tiny, token_ids

PLANS = {
    "full": PrecisionPlan.full(),
    **{f"W{bits}": PrecisionPlan.uniform(bits) for bits in range(2, 9)},
    "mixed": PrecisionPlan.of(
        {"*.self_attn.*": 5, "*.1.self_attn.q_proj": 16}, default=3, kv=4, name="mixed"
    ),
    "embeddings": PrecisionPlan.of({"*.self_attn.*": 4}, embeddings=6),
    "graded": PrecisionPlan.uniform(4, embeddings=3.5),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Family -> its elastic model, made once."""
    made = {}

    def open_family(name: str) -> ElasticModel:
        if name not in made:
            folder = save_tiny(name, tmp_path_factory.mktemp(name))
            made[name] = ElasticModel.open(folder, device="cpu", dtype=torch.float32)
        return made[name]

    return open_family


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tensor_bytes_are_the_deploy_size(family, plan, opened, tmp_path):
    elastic, path = opened(family), tmp_path / "out.safetensors"
    export(elastic, plan, path)
    with safe_open(path, framework="pt") as file:
        written = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118  not a mapping
    assert written == elastic.sizes.deploy(plan)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == 8 + header + written == Packed().sizes(elastic).deploy(plan)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_values_read_back_are_those_of_the_view(family, plan, opened, tmp_path):
    elastic = opened(family)
    export(elastic, plan, tmp_path / "out.safetensors")
    read = open_packed(tmp_path / "out.safetensors")
    state, view = read.state(), elastic.view(plan)
    for layer in elastic.layers:
        assert torch.equal(state[f"{layer}.weight"], view.get_submodule(layer).weight)
    for end in (view.get_input_embeddings(), view.get_output_embeddings()):
        assert any(torch.equal(state[f"{name}.weight"], end.weight) for name in elastic.embeddings)
    assert read.plan == plan and read.fingerprint == elastic.fingerprint


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_model_with_the_state_answers_as_the_view(family, opened, tmp_path):
    elastic, plan, ids = opened(family), PrecisionPlan.uniform(3, embeddings=5), token_ids()
    read = export(elastic, plan, tmp_path / "out.safetensors")
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**read.config), dtype=torch.float32).eval()
    plain.load_state_dict(read.state())
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, elastic.view(plan)(ids).logits)


def test_tied_parameters_are_stored_once(opened, tmp_path):
    read = export(opened("llama"), PrecisionPlan.uniform(4), tmp_path / "out.safetensors")
    assert read.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in read.tensors and "lm_head.weight" in read.state()


def test_a_plan_that_does_not_fit_writes_nothing(opened, tmp_path):
    with pytest.raises(PlanError):
        export(opened("llama"), PrecisionPlan.of({"model.layers.9.*": 4}), tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_older_file(opened, tmp_path, monkeypatch):
    path = tmp_path / "out.safetensors"
    export(opened("llama"), PrecisionPlan.uniform(4), path)
    before = path.read_bytes()

    def full_disk(name, *_):
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quept.export.packed.save_tensors", full_disk)
    with pytest.raises(OSError, match="cannot write .*out.safetensors: the disk is full"):
        export(opened("llama"), PrecisionPlan.uniform(5), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_no_export_is_refused_in_words(opened, tmp_path):
    path = tmp_path / "out.safetensors"
    with pytest.raises(ExportError, match="there is no file"):
        open_packed(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ExportError, match="not an exported plan"):
        open_packed(path)
    save_file({"x": torch.zeros(2)}, path, {"format": "quept-packed", "version": "2"})
    with pytest.raises(ExportError, match="version 2; this program reads up to 1"):
        open_packed(path)
    export(opened("llama"), PrecisionPlan.uniform(4), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ExportError, match="damaged"):
        open_packed(path)


def test_the_metadata_are_for_people_too(opened, tmp_path):
    path = tmp_path / "out.safetensors"
    export(opened("llama"), PLANS["mixed"], path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["plan"])["name"] == "mixed"
    assert json.loads(metadata["config"])["model_type"] == "llama"
    assert str(Path(opened("llama").source).parent) not in json.dumps(metadata)
