"""A plain folder loads with nothing of ours, and says what the view says."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quept.export import exporter
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests import tiny_vlm
from tests.tiny import FAMILIES, VISION, all_but_few_slow, pictures, save_tiny, save_tiny_vision, token_ids

PLAN = PrecisionPlan.uniform(3, embeddings=5)


def close(one, other):
    return (one - other).abs().max() < 0.02 * other.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_answers_as_the_view(family, tmp_path):
    elastic = ElasticModel.open(save_tiny(family, tmp_path / "m"), device="cpu", dtype=torch.float32)
    compared = exporter("hf").write(elastic, PLAN, tmp_path / "out")
    assert compared.relative < 2**-10
    model, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32), token_ids()
    with torch.no_grad():
        assert close(model(ids).logits, elastic.view(PLAN)(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("Grüße")["input_ids"] == elastic.tokenizer("Grüße")["input_ids"]
    written = "".join(f.read_text() for f in (tmp_path / "out").glob("*.json"))
    assert str(tmp_path) not in written


def test_embeddings_at_a_graded_width_are_written_as_their_values(tmp_path):
    elastic = ElasticModel.open(save_tiny("llama", tmp_path / "m"), device="cpu", dtype=torch.float32)
    plan = replace(PrecisionPlan.uniform(4, embeddings=4.5), name="\N{GRINNING FACE}" * 200)
    exporter("hf").write(elastic, plan, tmp_path / "out")
    again = ElasticModel.open(tmp_path / "out", device="cpu", dtype=torch.float32)
    for layer in elastic.embeddings:
        read, wanted = again.base.get_submodule(layer).weight.float(), elastic.values(layer, 4.5)
        assert torch.allclose(read, wanted, rtol=2**-10, atol=1e-4)


@pytest.mark.parametrize("architecture", VISION)
def test_timm_answers_as_the_view(architecture, tmp_path):
    folder = save_tiny_vision(architecture, tmp_path / architecture)
    elastic = ElasticModel.open(folder, device="cpu", dtype=torch.float32)
    exporter("hf").write(elastic, PLAN, tmp_path / "out")
    again = ElasticModel.open(tmp_path / "out", device="cpu", dtype=torch.float32)
    x = pictures(elastic.title)
    assert close(again.reference(x), elastic.view(PLAN)(x))


@pytest.mark.parametrize("family", all_but_few_slow(tiny_vlm.FAMILIES, ("llava", "qwen3-vl-moe")))
def test_a_model_that_sees_is_read_again_with_the_values_of_the_view(family, tmp_path):
    elastic = ElasticModel.open(tiny_vlm.save_tiny_vlm(family, tmp_path / "m"), device="cpu")
    exporter("hf").write(elastic, PLAN, tmp_path / "out")
    again = ElasticModel.open(tmp_path / "out", device="cpu")
    for layer in elastic.layers:
        read, wanted = again.base.get_submodule(layer).weight.float(), elastic.values(layer, 3)
        assert torch.allclose(read, wanted.view(read.shape), rtol=2**-10, atol=1e-4)
