"""Folders for mlx-lm and for vLLM hold our codes: read back here bit by bit, as their engines unpack them."""

import json

import pytest
import torch

from quept.export import exporter
from quept.export.base import PLAN
from quept.export.folder import CONFIG
from quept.numerics.grid import dequantize, quantize
from quept.plan import PlanError, PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import save_tiny, save_tiny_vision


@pytest.fixture(scope="module")
def elastic(tmp_path_factory):
    return ElasticModel.open(save_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama"), device="cpu")


def code_at(words: list[int], place: int, bits: int) -> int:
    """The code number `place` of a stream of 32-bit words, one bit after the other."""
    stream = [words[bit // 32] >> (bit % 32) & 1 for bit in range(place * bits, (place + 1) * bits)]
    return sum(bit << i for i, bit in enumerate(stream))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [32, 64, 192])
def test_mlx_reads_the_values_out_of_one_stream_of_bits_a_row(bits, group):
    packed, values = quantize(torch.randn(3, 192, generator=torch.Generator().manual_seed(bits)), bits, group)
    stored = exporter("mlx").store(packed)
    size, held = 192 // stored["scales"].shape[1], 8 if bits == 7 else bits
    for row in range(3):
        words = [int(word) for word in stored["weight"][row].to(torch.int64)]
        for column in range(192):
            scale, bias = (stored[name][row, column // size].item() for name in ("scales", "biases"))
            assert scale * code_at(words, column, held) + bias == values[row, column].item()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("rows, group", [(3, 32), (40, 96)])
def test_compressed_tensors_packs_codes_along_rows_and_zero_points_along_columns(bits, rows, group):
    packed, values = quantize(torch.randn(rows, 96, generator=torch.Generator().manual_seed(0)), bits, group)
    stored = exporter("compressed-tensors").store(packed)
    words, scales = stored["weight_packed"].tolist(), stored["weight_scale"]
    size = 96 // scales.shape[1]
    zeros = stored["weight_zero_point"].T.tolist() if bits < 8 else None
    assert len(words[0]) == -(-96 * bits // 32) and (zeros is None or len(zeros[0]) == -(-rows * bits // 32))
    for row in range(rows):
        for column in range(0, 96, 7):
            zero = code_at(zeros[column // size], row, bits) if zeros else 128
            code = code_at(words[row], column, bits)
            assert scales[row, column // size].item() * (code - zero) == values[row, column].item()


@pytest.mark.parametrize("name", ["mlx", "compressed-tensors"])
def test_what_is_loaded_is_what_was_stored(name):
    for bits in range(2, 9):
        packed, values = quantize(torch.randn(5, 128), bits, 64)
        codes, read = exporter(name).load(exporter(name).store(packed), packed)
        assert torch.equal(read, values) and torch.equal(read, dequantize(packed))
        assert int(codes.max()) < 2**bits


def test_the_config_says_theta_in_both_ways_and_the_bits_of_every_layer(elastic, tmp_path):
    plan = PrecisionPlan.of({"*.self_attn.*": 3, "*.1.mlp.down_proj": 16}, default=7, embeddings=5)
    exporter("mlx").write(elastic, plan, tmp_path / "mlx")
    config = json.loads((tmp_path / "mlx" / CONFIG).read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    said = config["quantization"]
    assert said["model.layers.0.self_attn.q_proj"] == {"group_size": 64, "bits": 3}
    assert said["model.layers.0.mlp.gate_proj"]["bits"] == 8  # 7 in 8
    assert said["model.layers.1.mlp.down_proj"] is False and said["model.embed_tokens"]["bits"] == 5
    assert PrecisionPlan.load(tmp_path / "mlx" / PLAN) == plan


def test_vllm_gets_a_group_of_layers_for_each_width(elastic, tmp_path):
    plan = PrecisionPlan.of({"*.mlp.down_proj": 8, "*.0.self_attn.o_proj": 16}, default=4)
    exporter("compressed-tensors").write(elastic, plan, tmp_path / "ct")
    said = json.loads((tmp_path / "ct" / CONFIG).read_text())["quantization_config"]
    widths = {g["weights"]["num_bits"]: g for g in said["config_groups"].values()}
    assert set(widths) == {4, 8} and widths[8]["weights"]["symmetric"]
    assert widths[8]["targets"] == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    assert "model.layers.0.self_attn.o_proj" in said["ignore"]


def test_layers_that_vllm_fuses_share_a_width_and_embeddings_stay(elastic):
    target = exporter("compressed-tensors")
    torn = PrecisionPlan.of({"*.q_proj": 3}, default=4)
    assert "fuse" in target.refuses(elastic, torn)
    assert "embed_tokens at 5 bits: it has 16" in target.refuses(
        elastic, PrecisionPlan.uniform(4, embeddings=5)
    )
    near = target.nearest(elastic, torn).resolve(elastic.layers)
    assert {near[f"model.layers.0.self_attn.{p}_proj"].weights for p in "qkv"} == {4}


@pytest.mark.parametrize("name", ["mlx", "compressed-tensors"])
def test_classifiers_are_refused_in_words(name, tmp_path):
    elastic = ElasticModel.open(save_tiny_vision("vit", tmp_path / "vit"), device="cpu")
    with pytest.raises(PlanError, match="is not written for classifiers of pictures: its engines read llama"):
        exporter(name).write(elastic, PrecisionPlan.uniform(4), tmp_path / "out")


def test_whole_rows_are_refused_where_no_group_fits(tmp_path):
    elastic = ElasticModel.open(save_tiny("opt", tmp_path / "opt"), device="cpu")  # 72 columns
    assert "is not written for models of type opt" in exporter("mlx").lacks(elastic)
    why = exporter("compressed-tensors").refuses(elastic, PrecisionPlan.uniform(4))
    assert why and "it has 16 bits" in why
