"""A GGUF file holds the codes of the plan, llama.cpp's own readers agree, and llama.cpp runs it."""

import importlib.util

import gguf
import numpy as np
import pytest
import torch

from quept.artifact import Artifact
from quept.export import exporter
from quept.export.gguf import blocks
from quept.export.gguf.exporter import Gguf
from quept.models import load
from quept.numerics.grid import dequantize, quantize
from quept.plan import FULL, PrecisionPlan
from quept.runtime import ElasticModel
from quept.transforms import apply, rotation_record
from quept.zoo.gguf_llama import convert
from tests.tiny import CHAT, all_but_few_slow, in_turn, save_tiny, save_tiny_vision, token_ids

LLAMA_CPP = pytest.mark.skipif(not importlib.util.find_spec("xllamacpp"), reason="needs xllamacpp")
FAMILIES = {  # and what of their tiny configs llama.cpp does not compute
    **dict.fromkeys(("llama", "llama-untied", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "olmo2"), {}),
    **dict.fromkeys(("granite", "glm4"), {}),
    **dict.fromkeys(("gemma3", "olmo3"), {"layer_types": ["sliding_attention"] * 2}),
    "smollm3": {"no_rope_layers": [1, 1]},
    "qwen3-moe": {"mlp_only_layers": [], "norm_topk_prob": True},
}
FEW = ("llama", "qwen3", "gemma2", "phi3", "qwen3-moe")
# 64 and 96 columns, and of llama-untied 80, which no block divides; heads of an even number of channels
MIXED = PrecisionPlan.of({"*.q_proj": 3, "*.k_proj": 5, "*.up_proj": 6, "*.down_proj": 16}, default=4)


def opened(family, folder, **changes):
    name = family.replace("phi3", "phi")  # by its name llama.cpp looks for the words of the real one
    save_tiny(family, folder / name, **changes)
    return ElasticModel.open(folder / name, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("columns, group", [(192, 64), (96, 32), (512, 512), (768, 256)])
@pytest.mark.parametrize("bits", range(2, 9))
def test_llama_cpps_reader_of_a_block_gives_the_values_of_the_grid(bits, columns, group):
    weight = torch.randn(6, columns, generator=torch.Generator().manual_seed(bits)) + 0.1
    packed, values = quantize(weight, bits, group)
    kind = blocks.kinds(columns, group)[bits]
    content = blocks.to_blocks(packed, kind)
    assert content.numel() == blocks.nbytes(6, columns, kind)
    read = gguf.quants.dequantize(content.flatten(1).numpy(), gguf.GGMLQuantizationType[kind])
    off = (torch.from_numpy(np.array(read)) - values).abs().max()
    assert off == 0 if kind.endswith(("_K", "_0")) else off <= values.abs().max() * 2**-11
    assert blocks.difference(content.flatten(), packed, kind) <= 2**-11
    for place in (0, content.shape[-1] - 1):  # a scale, and a code
        content[3, 1, place] += 1
        assert blocks.difference(content.flatten(), packed, kind) is None
        content[3, 1, place] -= 1
    codes, d, m = blocks.from_blocks(content, kind)
    wanted, scale, offset = blocks.expected(packed, kind)
    assert torch.equal(codes, wanted) and torch.equal(d, scale) and torch.allclose(m, offset, rtol=2**-11)
    same = (codes.float() * scale[..., None] + offset[..., None]).view(6, columns)
    assert torch.allclose(same, dequantize(packed), atol=1e-6)


def test_rows_of_one_scale_take_k_types_and_other_columns_none():
    assert blocks.kinds(1024, 1024)[2] == "Q2_K" and blocks.kinds(1024, 64)[2] == "Q4_1"
    assert blocks.kinds(80, 80) == blocks.kinds(96, 48) == {}


@pytest.mark.parametrize("family", all_but_few_slow(FAMILIES, FEW))
def test_the_file_converted_back_has_the_values_of_the_view(family, tmp_path):
    elastic, target = opened(family, tmp_path, **FAMILIES[family]), Gguf()
    plan = target.nearest(elastic, MIXED)
    compared = target.write(elastic, plan, tmp_path / "x.gguf")
    assert compared.relative < 2**-10
    (tmp_path / "back").mkdir()
    convert(tmp_path / "x.gguf", tmp_path / "back")
    again = ElasticModel.open(tmp_path / "back", device="cpu", dtype=torch.float32)
    read, view = again.base, elastic.view(plan)
    for name in elastic.layers:
        one, other = (m.get_submodule(name).weight.float() for m in (read, view))
        assert torch.allclose(one, other, rtol=2**-10, atol=2e-3), name
    small = {name: p for name, p in elastic.base.named_parameters() if p.ndim == 1}
    assert all(torch.allclose(read.get_parameter(name), p, rtol=2**-10) for name, p in small.items())
    assert again.config.rope_parameters == elastic.config.rope_parameters
    with torch.no_grad():
        wanted, found = (
            v(input_ids=token_ids(), use_cache=False).logits for v in (view, again.view(PrecisionPlan.full()))
        )
    assert (found - wanted).abs().max() < 0.02 * wanted.std()


def test_weights_in_bfloat16_stay_so(tmp_path):
    from safetensors.torch import load_file

    elastic = opened("llama", tmp_path, dtype=torch.bfloat16)
    Gguf().write(elastic, PrecisionPlan.full(), tmp_path / "x.gguf")
    (tmp_path / "back").mkdir()
    convert(tmp_path / "x.gguf", tmp_path / "back")
    read = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(read[name], p) for name, p in elastic.base.named_parameters())


def test_the_plan_and_whose_it_is_stand_in_the_file(tmp_path):
    elastic = opened("llama", tmp_path)
    Gguf().write(elastic, PrecisionPlan.uniform(5, embeddings=8), tmp_path / "x.gguf")
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    plan = PrecisionPlan.from_json(reader.get_field("quept.plan").contents())
    assert plan == PrecisionPlan.uniform(5, embeddings=8)
    assert reader.get_field("quept.fingerprint").contents() == elastic.fingerprint
    assert reader.get_field("tokenizer.chat_template").contents() == CHAT


def test_what_gguf_cannot_hold_is_a_sentence(tmp_path):
    target = Gguf()
    assert "models of type opt are not written; export it as" in target.lacks(opened("opt", tmp_path))
    vit = ElasticModel.open(save_tiny_vision("vit", tmp_path / "vit"), device="cpu")
    assert "classifies pictures, and GGUF is not for these" in target.lacks(vit)
    elastic = opened("llama-untied", tmp_path)
    assert "does not hold model.layers.0.mlp.down_proj at 4 bits: it has 16 bits" in target.refuses(
        elastic, PrecisionPlan.uniform(4)
    )
    near = target.nearest(elastic, PrecisionPlan.uniform(4, 8))
    widths = {b.weights for n, b in near.resolve(elastic.layers).items() if not n.endswith("down_proj")}
    assert widths == {4} and near.resolve(elastic.layers)["model.layers.1.mlp.down_proj"].weights == FULL
    assert "do not round activations to 8 bits" in target.refuses(elastic, PrecisionPlan.uniform(16, 8))
    assert "leave KV out" in target.refuses(elastic, PrecisionPlan.uniform(16, kv=4))


def test_a_layer_that_transforms_its_input_is_refused_in_words(tmp_path):
    folder = save_tiny("llama", tmp_path / "m")
    loaded = load(folder)
    rotated = ElasticModel(apply(loaded, rotation_record()), Artifact.rtn(loaded), device="cpu")
    why = Gguf().refuses(rotated, PrecisionPlan.uniform(4))
    assert "down_proj" in why and "export a calibration without rotation" in why


def test_llama_quantize_is_told_the_type_of_every_weight(tmp_path):
    elastic = opened("llama", tmp_path)
    lines = Gguf().tensor_types(elastic, MIXED).splitlines()
    assert r"^blk\.0\.attn_k\.weight$=q5_1" in lines and r"^token_embd\.weight$=f16" in lines
    assert len(lines) == len(elastic.layers) + 1


ROPES = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "linear": {"factor": 2.0},
    "yarn": {"factor": 4.0},
}


@LLAMA_CPP
@pytest.mark.parametrize(
    "family, rope",
    [*in_turn(all_but_few_slow(FAMILIES, FEW), (None,)), *(("llama", rope) for rope in ROPES)],
)
def test_llama_cpp_answers_as_the_view(family, rope, tmp_path):
    from quept.export.gguf.agreement import agreement
    from quept.export.gguf.llama_cpp import LlamaCpp

    original = {} if rope == "linear" else {"original_max_position_embeddings": 16}
    scaled = {"rope_type": rope, "rope_theta": 10000.0, **original, **ROPES[rope]} if rope else None
    changes = {"rope_parameters": scaled, "head_dim": 32} if rope else FAMILIES[family]
    elastic, ids = opened(family, tmp_path, **changes), token_ids(1, 48)[0]
    plan = exporter("gguf").nearest(elastic, MIXED)
    exporter("gguf").write(elastic, plan, tmp_path / "x.gguf")
    with LlamaCpp(tmp_path / "x.gguf", context=64, threads=1) as llama:
        found = agreement(elastic, plan, llama, ids, 3)
    assert found.kl < 0.02 and found.positions == 3


@LLAMA_CPP
def test_llama_cpp_cuts_text_and_writes_conversations_as_we_do(tmp_path):
    from quept.export.gguf.llama_cpp import LlamaCpp

    elastic = opened("llama", tmp_path)
    exporter("gguf").write(elastic, PrecisionPlan.uniform(4), tmp_path / "x.gguf")
    talk = [{"role": "user", "content": "Grüße 🙂 漢字\n\tif x[3]:  return"}]
    wanted = elastic.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    with LlamaCpp(tmp_path / "x.gguf", context=256, threads=1) as llama:
        assert llama.prompt(talk) == wanted
        ids = elastic.tokenizer(wanted, add_special_tokens=False)["input_ids"]
        assert llama.tokens(wanted) == ids
        assert len(llama.greedy(ids, 5)) == 5
        assert isinstance("".join(llama.answer(talk, 4)), str)
