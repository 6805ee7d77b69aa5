"""A person's own GGUF file opens as the model it was made from, at what the file holds, and says so."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from quept import ElasticModel, PrecisionPlan
from quept.models import LoadError, load
from tests import tiny

pytestmark = pytest.mark.slow

Kind = gguf.GGMLQuantizationType
NAMES = {  # of transformers -> of GGUF
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUEPT_CACHE", str(tmp_path / "cache"))


def gguf_name(name: str) -> str:
    *path, leaf = name.split(".")
    if path[:2] == ["model", "layers"]:
        return f"blk.{path[2]}.{NAMES['.'.join(path[3:])]}.{leaf}"
    return f"{NAMES['.'.join(path)]}.{leaf}"


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter orders q and k of a llama."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def save_gguf(
    model,
    path: Path,
    architecture: str = "llama",
    kind: Kind = Kind.F32,
    pre: str = "smollm",
    rope=(),
    more=None,
    merges=(),
) -> Path:
    """Write a model of transformers as llama.cpp's converter would."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if head_dim := getattr(config, "head_dim", None):
        writer.add_key_length(head_dim)
    for add, value in rope:
        getattr(writer, add)(value)
    tokenizer = tiny.tiny_tokenizer()
    pieces = [*tokenizer.convert_ids_to_tokens(range(len(tokenizer))), *(m.replace(" ", "") for m in merges)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(pieces)
    writer.add_token_types([3] * len(tiny.SPECIAL) + [1] * (len(pieces) - len(tiny.SPECIAL)))
    writer.add_token_merges(merges)
    for add, token in (("unk", 0), ("bos", 1), ("eos", 2), ("pad", 3)):
        getattr(writer, f"add_{add}_token_id")(token)
    writer.add_chat_template(tiny.CHAT)
    state = {name: value.float().numpy() for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, values in state.items():
        if architecture == "llama" and name.split(".")[-2] in heads:
            values = interleaved(values, heads[name.split(".")[-2]])
        stored = kind if values.ndim == 2 else Kind.F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, stored), raw_dtype=stored)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model.float()(tiny.token_ids(length=64)).logits


@pytest.mark.parametrize("name", ["llama", "llama-untied", "mistral", "qwen2", "qwen3"])
def test_every_family_gives_the_logits_of_the_model_it_was_made_from(tmp_path, name):
    model = tiny.tiny_model(name)
    architecture = name if name.startswith("qwen") else "llama"  # llama.cpp's name for a Mistral, too
    loaded = load(save_gguf(model, tmp_path / "Tiny.F32.gguf", architecture))
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.title == "Tiny.F32" and "stored" in loaded.provenance
    tokenizer = tiny.tiny_tokenizer()
    assert loaded.tokenizer("hé 12!").input_ids == tokenizer("hé 12!").input_ids
    assert loaded.tokenizer.chat_template == tiny.CHAT and loaded.tokenizer.eos_token == "</s>"


def test_biases_are_turned_back_with_their_rows(tmp_path):
    model = tiny.tiny_model("llama", attention_bias=True, mlp_bias=True)
    assert torch.equal(logits(load(save_gguf(model, tmp_path / "b.gguf")).model), logits(model))


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192, "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("rope", "written"),
    [
        ({"rope_type": "default", "rope_theta": 500.0}, ()),
        (
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
            (("add_rope_scaling_type", gguf.RopeScalingType.LINEAR), ("add_rope_scaling_factor", 2.0)),
        ),
        (
            YARN,
            (
                ("add_rope_scaling_type", gguf.RopeScalingType.YARN),
                ("add_rope_scaling_factor", 4.0),
                ("add_rope_scaling_orig_ctx_len", 32),
            ),
        ),
        (LLAMA3, ()),
    ],
    ids=["theta", "linear", "yarn", "llama3"],
)
def test_rotary_parameters_come_along(tmp_path, rope, written):
    model = tiny.tiny_model("llama", rope_parameters=rope, hidden_size=256)  # 64 dimensions a head
    more = {}
    if rope["rope_type"] == "llama3":  # as llama.cpp's converter: what each frequency is divided by
        plain = 1 / 10000.0 ** (np.arange(0, 64, 2) / 64)
        more = {"rope_freqs.weight": (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)}
        assert more["rope_freqs.weight"].max() > 7.9
    loaded = load(save_gguf(model, tmp_path / "r.gguf", rope=written, more=more))
    assert loaded.model.config.rope_parameters == model.config.rope_parameters
    torch.testing.assert_close(logits(loaded.model), logits(model), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1, Kind.Q5_0, Kind.F16, Kind.BF16])
def test_what_is_quantized_is_dequantized_and_said_to_be(tmp_path, kind):
    model = tiny.tiny_model("llama")
    loaded = load(save_gguf(model, tmp_path / "Tiny.gguf", kind=kind))
    up = model.model.layers[1].mlp.up_proj.weight.detach().float().numpy()
    expected = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(up, kind), kind))
    dtype = torch.bfloat16 if kind == Kind.BF16 else torch.float16
    assert torch.equal(loaded.model.model.layers[1].mlp.up_proj.weight, expected.to(dtype))
    assert f"as {kind.name}" in loaded.provenance
    dequantized = kind not in (Kind.F16, Kind.BF16)
    assert ("dequantized" in loaded.title, "not the original weights" in loaded.provenance) == (
        dequantized,
    ) * 2


def test_a_folder_with_nothing_else_opens_and_the_second_time_nothing_is_converted(tmp_path):
    (tmp_path / "it").mkdir()
    file = save_gguf(tiny.tiny_model("llama"), tmp_path / "it" / "a.gguf", kind=Kind.Q8_0)
    elastic = ElasticModel.open(tmp_path / "it", device="cpu", dtype=torch.float32)
    assert elastic.title == "a, dequantized" and elastic.view(PrecisionPlan.uniform(4))
    stages: list[str] = []
    again = load(file, lambda stage, fraction: stages.append(stage))
    assert again.fingerprint == elastic.fingerprint and not any("dequantizing" in stage for stage in stages)
    save_gguf(tiny.tiny_model("llama", seed=1), file, kind=Kind.Q8_0)
    os.utime(file, ns=(1, 1))
    assert load(file).fingerprint != elastic.fingerprint


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "gpt-2", "tekken", "smollm"])
def test_a_byte_level_vocabulary_keeps_its_merges_digits_and_special_tokens(tmp_path, pre):
    merges = ["t h", "1 2", "th e"]
    model = tiny.tiny_model("llama", vocab_size=len(tiny.tiny_tokenizer()) + len(merges))
    tokenizer = load(save_gguf(model, tmp_path / "x.gguf", pre=pre, merges=merges)).tokenizer
    twelve = ["1", "2"] if pre in ("qwen2", "tekken", "smollm") else ["12"]  # digits by themselves
    assert tokenizer.tokenize("the</s>12") == ["the", "</s>", *twelve]
    assert tokenizer.decode(tokenizer("Ünï <s>").input_ids) == "Ünï <s>"


SENTENCEPIECE = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{i:02X}>" for i in range(256)),
    "\u2581",
    "a",
    "b",
    "\u2581a",
    "ab",
]


def test_a_sentencepiece_vocabulary_goes_through_transformers_own_conversion(tmp_path):
    model = tiny.tiny_model("llama", vocab_size=len(SENTENCEPIECE))
    kinds = [2, 3, 3, *[6] * 256, *[1] * 5]
    path = save_gguf(model, tmp_path / "s.gguf")
    reader = gguf.GGUFReader(path)  # the same file with another vocabulary
    writer = gguf.GGUFWriter(tmp_path / "spm.gguf", "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "tokenizer.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    writer.add_tokenizer_model("llama")
    writer.add_token_list(SENTENCEPIECE)
    writer.add_token_scores([0.0] * 259 + [-5.0, -3.0, -4.0, -1.0, -2.0])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = load(tmp_path / "spm.gguf").tokenizer
    ids = tokenizer("ab é", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == "ab é" and (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.chat_template is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "mamba"}, "holds a mamba model; of GGUF files llama, qwen2, qwen3"),
        ({"pre": "qwen2"}, "a damaged tokenizer"),  # without merges
        ({"pre": "deepseek-llm"}, r"a tokenizer that is not read \(gpt2 deepseek-llm\)"),
        ({"more": {"blk.0.ffn_gate_inp.weight": np.zeros((4, 64), np.float32)}}, "'blk.0.ffn_gate_inp"),
        ({"more": {"rope_freqs.weight": np.full(8, 3, np.float32)}}, "rotary frequencies"),
        ({"rope": [("add_rope_scaling_type", gguf.RopeScalingType.LONGROPE)]}, "rotary frequencies"),
        ({"rope": [("add_rope_dimension_count", 8)]}, "rotates a part of each head"),
        ({"rope": [("add_sliding_window", 32)]}, "attends to a window"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_name(tmp_path, options, words):
    with pytest.raises(LoadError, match=words):
        load(save_gguf(tiny.tiny_model("llama"), tmp_path / "x.gguf", **options))


@pytest.mark.parametrize("size", [100, 5000, 60_000])
def test_a_file_that_is_cut_short_is_said_to_be(tmp_path, size):
    path = save_gguf(tiny.tiny_model("llama"), tmp_path / "x.gguf")
    os.truncate(path, size)
    with pytest.raises(LoadError, match="x.gguf is no whole GGUF file: fetch it again"):
        load(path)
