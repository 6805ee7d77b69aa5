import json
import shutil
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from quept.models import FAMILIES, LoadError, fingerprint_of, layout_of, load
from tests import tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {name: tiny.save_tiny(name, root / name) for name in tiny.FAMILIES}


@pytest.fixture
def folder(folders, tmp_path):
    """A tiny Llama to damage."""
    return shutil.copytree(folders["llama"], tmp_path / "llama")


def change_config(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_every_family_loads_from_a_folder(folders, name):
    loaded = load(folders[name])
    assert loaded.title == name and loaded.source == str(folders[name]) and name in loaded.provenance
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer.decode(loaded.tokenizer("wörd").input_ids, skip_special_tokens=True) == "wörd"
    with torch.no_grad():
        logits = loaded.model.float()(tiny.token_ids()).logits
        assert torch.equal(logits, tiny.tiny_model(name).float()(tiny.token_ids()).logits)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_the_anatomy_names_every_linear_layer_but_the_head(folders, name):
    model = load(folders[name]).model
    layout = layout_of(model)
    linears = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(layout.layers) == linears - {layout.head} and len(layout.layers) == len(set(layout.layers))
    assert len(layout.blocks) == 2 and all(tuple(block.layers) == layout.roles for block in layout.blocks)
    assert all(
        layer.startswith(block.name + ".") for block in layout.blocks for layer in block.layers.values()
    )


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_the_table_names_modules_that_exist(folders, name):
    model = load(folders[name]).model
    layout = layout_of(model)
    family = FAMILIES[layout.family]
    assert isinstance(model.get_submodule(layout.embed), nn.Embedding)
    assert isinstance(model.get_submodule(layout.head), nn.Linear)
    model.get_submodule(layout.final_norm)
    for block in layout.blocks:
        for norm, readers in family.norms.items():
            model.get_submodule(f"{block.name}.{norm}")
            assert set(readers) <= set(block.layers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_weights_are_kept_as_they_are(tmp_path, dtype):
    loaded = load(tiny.save_tiny("qwen3", tmp_path, dtype=dtype))
    assert {p.dtype for p in loaded.model.parameters()} == {dtype}
    assert fingerprint_of(tiny.tiny_model("qwen3", dtype=dtype)) == loaded.fingerprint


def test_wider_weights_are_held_in_float16(tmp_path):
    loaded = load(tiny.save_tiny("llama", tmp_path, dtype=torch.float32))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float16}


def test_the_fingerprint_follows_the_weights_and_nothing_else(folders, tmp_path):
    again = tiny.save_tiny("llama", tmp_path / "elsewhere")
    other = tiny.save_tiny("llama", tmp_path / "other", seed=1)
    assert load(again).fingerprint == load(folders["llama"]).fingerprint != load(other).fingerprint
    model = tiny.tiny_model("llama")
    before = fingerprint_of(model)
    with torch.no_grad():
        model.model.norm.weight[3] += 0.5
    assert fingerprint_of(model) != before


def test_an_unsupported_type_is_refused_with_the_supported_ones(folder):
    change_config(folder, model_type="rwkv")
    with pytest.raises(
        LoadError, match="type 'rwkv' are not supported; supported types: llama, mistral, qwen2, qwen3, opt"
    ):
        load(folder)


def test_an_unknown_type_is_refused(folder):
    change_config(folder, model_type="frobnicator")
    with pytest.raises(LoadError, match="frobnicator"):
        load(folder)


@pytest.mark.parametrize("source", ["nowhere", "/no/such/folder", "./a/b", "", "x" * 5000, "a\0b", "a/b/c"])
def test_a_source_that_is_nothing_is_refused_with_the_choices(source):
    with pytest.raises(LoadError, match="smollm2-135m.*a folder.*hub id like org/name"):
        load(source)


@pytest.mark.parametrize(
    "source", ["org/no such name", "../..", "org/name"]
)  # tests run with the hub switched off
def test_a_hub_id_that_cannot_be_had_is_refused(source):
    with pytest.raises(LoadError):
        load(source)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(LoadError, match="cannot load"):
        load(tmp_path)


def test_pickled_weights_are_refused(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="safetensors"):
        load(folder)


@pytest.mark.parametrize("model_type", ["llama", "frobnicator"])
def test_code_that_comes_with_a_model_is_never_run(folder, model_type, monkeypatch):
    ran = folder / "ran"
    (folder / "custom.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import LlamaConfig as Config, LlamaForCausalLM as Model\n"
        "from transformers import PreTrainedTokenizerFast as Tokenizer\n"
    )
    change_config(
        folder,
        model_type=model_type,
        auto_map={"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"},
    )
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [None, "custom.Tokenizer"]}}
    path.write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what transformers would ask for
    with suppress(LoadError):
        load(folder)
    assert not ran.exists()


def test_truncated_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(LoadError, match="cannot load"):
        load(folder)


def test_missing_weights_are_refused_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError, match="incomplete: model.layers.1.mlp.up_proj.weight"):
        load(folder)


def test_weights_of_another_shape_are_refused(folder):
    change_config(folder, intermediate_size=64)
    with pytest.raises(LoadError, match="cannot load"):
        load(folder)


def test_a_checkpoint_that_is_already_quantized_is_refused(folder):
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(LoadError, match="already quantized"):
        load(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"model_type": 3}', '{"model_type": "llama", "hidden_size": "many"}']
)
def test_a_damaged_config_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(LoadError, match="cannot load"):
        load(folder)


def test_masks_that_older_versions_stored_are_no_weights(tmp_path):
    folder = tiny.save_tiny("gpt-neox", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert len(load(folder).layout.layers) == 8


def test_a_missing_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(LoadError, match="cannot load"):
        load(folder)


def test_progress_is_told(folders):
    stages = []
    load(folders["llama"], lambda stage, fraction: stages.append(stage))
    assert stages == ["reading the weights", "checking the weights"]
