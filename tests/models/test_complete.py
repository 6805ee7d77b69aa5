"""Strict at the door: what a checkpoint holds beyond its config, or lacks, is named and refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from quept.models import LoadError, load
from tests.tiny import save_tiny, save_tiny_vision, tiny_model, tiny_tokenizer, token_ids

NAME = "model.layers.0.self_attn.q_proj"
VIT = "blocks.0.attn.qkv"
INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"
FREQUENCIES = 10000.0 ** -(torch.arange(8) / 8)


def rewritten(folder, change):
    """The folder with `change` made to the tensors of its file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def fp8(tensors, name=NAME, scale="weight_scale"):
    tensors[f"{name}.weight"] = tensors[f"{name}.weight"].to(torch.float8_e4m3fn)
    tensors[f"{name}.{scale}"] = torch.ones(1)


def gptq(tensors):
    del tensors[f"{NAME}.weight"]
    tensors[f"{NAME}.qweight"] = torch.zeros(8, 64, dtype=torch.int32)
    tensors[f"{NAME}.scales"] = torch.ones(1, 64, dtype=torch.float16)


def bitsandbytes(tensors):
    tensors[f"{NAME}.weight"] = torch.zeros(2048, 1, dtype=torch.uint8)
    tensors[f"{NAME}.weight.absmax"] = torch.ones(64)


def mlx(tensors):
    tensors[f"{NAME}.weight"] = torch.zeros(64, 8, dtype=torch.uint32)
    tensors[f"{NAME}.scales"], tensors[f"{NAME}.biases"] = torch.ones(2, 64, 1, dtype=torch.float16)


def packed(tensors):
    del tensors[f"{NAME}.weight"]
    tensors[f"{NAME}.weight_packed"] = torch.zeros(64, 8, dtype=torch.int32)


@pytest.mark.parametrize("how", [fp8, gptq, bitsandbytes, mlx, packed])
def test_weights_that_are_quantized_already_are_refused(how, tmp_path):
    folder = rewritten(save_tiny("llama", tmp_path), how)
    with pytest.raises(LoadError, match=rf"already quantized \({NAME}.*open the original model"):
        load(folder)


def test_codes_alone_are_told_by_their_type(tmp_path):
    folder = rewritten(save_tiny("llama", tmp_path), lambda tensors: fp8(tensors, scale="amax"))
    with pytest.raises(LoadError, match="holds F8_E4M3"):
        load(folder)


@pytest.mark.parametrize("entry", ["quantization_config", "quantization"])
def test_a_config_that_says_so_is_enough(entry, tmp_path):
    folder = save_tiny("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {entry: {"bits": 4, "quant_method": "gptq"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=r"already quantized \(.* in its config\)|MLX has quantized already"):
        load(folder)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("more", [f"{NAME}.bias", "model.layers.2.mlp.up_proj.weight", "value_head.weight"])
def test_a_tensor_that_nobody_reads_is_named(more, shards, tmp_path):
    folder = tmp_path
    if shards:
        tiny_model("llama").save_pretrained(folder, max_shard_size="30KB")
        tiny_tokenizer().save_pretrained(folder)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        index["weight_map"][more] = "more.safetensors"
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        save_file({more: torch.ones(64)}, folder / "more.safetensors", {"format": "pt"})
    else:
        rewritten(save_tiny("llama", folder), lambda tensors: tensors.update({more: torch.ones(64)}))
    with pytest.raises(LoadError, match=f"{more} has no place in the model"):
        load(folder)


def test_a_tensor_of_another_shape_is_named(tmp_path):
    def narrower(tensors):
        tensors[f"{NAME}.weight"] = tensors[f"{NAME}.weight"][:32]

    with pytest.raises(LoadError, match=f"{NAME}.weight has another shape"):
        load(rewritten(save_tiny("llama", tmp_path), narrower))


def test_constants_that_older_versions_wrote_do_no_harm(tmp_path):
    def older(tensors):
        tensors[INV_FREQ] = FREQUENCIES.half()

    folder = save_tiny("llama", tmp_path)
    before = load(folder).identity
    assert load(rewritten(folder, older)).identity == before


def test_rotary_frequencies_of_another_config_are_refused(tmp_path):
    folder = save_tiny("llama", tmp_path)
    rewritten(folder, lambda tensors: tensors.update({INV_FREQ: FREQUENCIES**0.5}))
    with pytest.raises(LoadError, match=rf"{INV_FREQ} holds other frequencies than the config's rope_theta"):
        load(folder)


def test_positions_that_the_config_scales_fit_the_frequencies_from_before(tmp_path):
    folder = rewritten(save_tiny("llama", tmp_path), lambda t: t.update({INV_FREQ: FREQUENCIES}))
    config = json.loads((folder / "config.json").read_text())
    for kind in ({"rope_type": "linear"}, {"rope_type": "yarn", "original_max_position_embeddings": 64}):
        rope = {"rope_parameters": {"rope_theta": 10000.0, "factor": 2.0} | kind}
        (folder / "config.json").write_text(json.dumps(config | rope))
        load(folder)


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_model_that_brings_a_head_answers_with_that_head(same, tmp_path):
    def headed(tensors):
        factor = 1 if same else 2
        tensors["lm_head.weight"] = factor * tensors["model.embed_tokens.weight"]

    folder = save_tiny("llama", tmp_path)
    loaded = load(folder)
    ours = load(rewritten(folder, headed)).model(input_ids=token_ids()).logits
    torch.testing.assert_close(ours, loaded.model(input_ids=token_ids()).logits * (1 if same else 2))


def test_a_classifiers_codes_leftovers_and_gaps_are_refused(tmp_path):
    def cases():
        yield "already quantized", lambda tensors: fp8(tensors, VIT)
        yield "blocks.0.attn.extra", lambda tensors: tensors.update({"blocks.0.attn.extra": torch.ones(3)})
        yield "pre_logits.fc.weight has no place", lambda t: t.update({"pre_logits.fc.weight": torch.ones(3)})
        yield "pos_embed has another shape", lambda t: t.update({"pos_embed": torch.randn(1, 10, 64)})

    for i, (words, change) in enumerate(cases()):
        folder = rewritten(save_tiny_vision("vit", tmp_path / str(i)), change)
        with pytest.raises(LoadError, match=words):
            load(folder)


def test_constants_of_a_classifier_do_no_harm(tmp_path):
    def older(tensors):
        tensors["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)

    folder = save_tiny_vision("swin", tmp_path)
    before = load(folder).identity
    assert load(rewritten(folder, older)).identity == before


def test_the_size_that_pictures_are_prepared_to_is_the_models(tmp_path):
    folder = save_tiny_vision("dinov2", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["model_args"]["img_size"], config["pretrained_cfg"]["fixed_input_size"]
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load(folder)
    assert loaded.model(torch.zeros(1, *loaded.vision.data["input_size"]).half()).shape == (1, 5)
