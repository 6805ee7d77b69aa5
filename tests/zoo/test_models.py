"""A built-in model becomes a folder that loads: the GGUF file's numbers, whole or not there at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from quept import zoo
from quept.zoo import ModelEntry, SourceError, model_folder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BLOCKS, HIDDEN, HEADS, KV_HEADS, MLP = 2, 64, 4, 2, 96
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_gguf(path: Path) -> None:
    """A llama of two blocks in Q4_1 with a byte-level vocabulary, as llama.cpp's converter would write it."""
    from tokenizers import pre_tokenizers

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    vocabulary = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()) + ["\u0120\u0120", "th"]
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(vocabulary) - len(SPECIAL)))
    writer.add_token_merges(["\u0120 \u0120", "t h"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    kv = HIDDEN * KV_HEADS // HEADS
    shapes = {"attn_norm": [HIDDEN], "ffn_norm": [HIDDEN], "attn_q": [HIDDEN, HIDDEN], "attn_k": [kv, HIDDEN]}
    shapes |= {"attn_v": [kv, HIDDEN], "attn_output": [HIDDEN, HIDDEN], "ffn_gate": [MLP, HIDDEN]}
    shapes |= {"ffn_up": [MLP, HIDDEN], "ffn_down": [HIDDEN, MLP]}
    named = {"token_embd": [len(vocabulary), HIDDEN], "output_norm": [HIDDEN]}
    named |= {f"blk.{b}.{name}": shape for b in range(BLOCKS) for name, shape in shapes.items()}
    for name, shape in named.items():
        values = random.standard_normal(shape, dtype=np.float32)
        kind = gguf.GGMLQuantizationType.Q4_1 if len(shape) == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture
def tiny(index, gguf_file, monkeypatch) -> ModelEntry:
    """A catalogue entry for the tiny model, in a wheel of its own."""
    source = index.add("fake-model", "1.0", {"fake_model/tiny.gguf": gguf_file.read_bytes()})
    entry = ModelEntry(
        "tiny", "Tiny", "language", "none", "made up", source["fake_model/tiny.gguf"], "gguf-llama"
    )
    monkeypatch.setitem(zoo.MODELS, "tiny", entry)
    return entry


def in_another_process(entry: ModelEntry, on_stage: str = "pass") -> subprocess.Popen:
    script = f"""
import os, signal
from quept import zoo
from quept.zoo import ModelEntry, WheelFile
zoo.MODELS["tiny"] = {entry!r}
stages = []
def progress(stage, fraction):
    stages.append(stage)
    {on_stage}
assert (zoo.model_folder("tiny", progress) / "model.safetensors").exists()
print("|".join(stages))
"""
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_the_folder_holds_the_numbers_that_transformers_reads_from_the_gguf_file(tiny, gguf_file):
    ours = load_file(model_folder("tiny") / "model.safetensors")
    theirs = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    )
    expected = {name: value for name, value in theirs.state_dict().items() if name != "lm_head.weight"}
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(ours[name], value.half()), name


def test_q_and_k_rows_go_back_to_halves(tiny, gguf_file):
    """The slow loop: GGUF row 2i of a head is row i here, row 2i + 1 is row i + d/2."""
    ours = load_file(model_folder("tiny") / "model.safetensors")["model.layers.0.self_attn.k_proj.weight"]
    stored = next(t for t in gguf.GGUFReader(gguf_file).tensors if t.name == "blk.0.attn_k.weight")
    rows, d = gguf.quants.dequantize(stored.data, stored.tensor_type), HIDDEN // HEADS
    for head in range(KV_HEADS):
        for i in range(d // 2):
            for gguf_row, row in ((2 * i, i), (2 * i + 1, i + d // 2)):
                expected = torch.from_numpy(rows[head * d + gguf_row]).half()
                assert torch.equal(ours[head * d + row], expected)


def test_the_folder_loads_as_an_ordinary_float16_model(tiny):
    folder = model_folder("tiny")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert model.config.rms_norm_eps == 1e-5
    assert model.generation_config.eos_token_id == 2


def test_the_tokenizer_splits_digits_and_knows_its_template(tiny):
    tokenizer = AutoTokenizer.from_pretrained(model_folder("tiny"))
    assert tokenizer.convert_ids_to_tokens(tokenizer("  12th")["input_ids"]) == [
        "\u0120\u0120",
        "1",
        "2",
        "th",
    ]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "h\u00e9, 12!"}], tokenize=False)
    assert text == "<|im_start|>user\nh\u00e9, 12!<|im_end|>\n"
    ids = tokenizer(text)["input_ids"]
    assert (ids[0], ids[-2]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.decode(ids) == text


def test_a_second_call_does_nothing(index, tiny):
    stages = []
    folder = model_folder("tiny")
    index.vanish()
    assert model_folder("tiny", lambda stage, fraction: stages.append(stage)) == folder
    assert stages == []


def flip(path: Path, keep_time: bool) -> None:
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    later = before.st_mtime_ns if keep_time else before.st_mtime_ns + 1
    os.utime(path, ns=(before.st_atime_ns, later))


DAMAGES = {
    "cut short": lambda folder: os.truncate(folder / "model.safetensors", 1000),
    "gone": lambda folder: (folder / "tokenizer.json").unlink(),
    "written to": lambda folder: flip(folder / "model.safetensors", keep_time=False),
    "manifest cut": lambda folder: os.truncate(folder / "quept-cache.json", 30),
    "manifest of another shape": lambda folder: (folder / "quept-cache.json").write_text("[]"),
    "newer format": lambda folder: (folder / "quept-cache.json").write_text(
        (folder / "quept-cache.json").read_text().replace('"format_version": 1', '"format_version": 2')
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_built_again(tiny, damage):
    folder = model_folder("tiny")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "quept-cache.json"}
    DAMAGES[damage](folder)
    stages = []
    model_folder("tiny", lambda stage, fraction: stages.append(stage))
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "quept-cache.json"}
    assert after == before
    assert "building it again" in stages[0]


def test_verify_finds_what_sizes_and_times_do_not_show(tiny):
    folder = model_folder("tiny")
    whole = (folder / "model.safetensors").read_bytes()
    flip(folder / "model.safetensors", keep_time=True)
    model_folder("tiny", verify=True)
    assert (folder / "model.safetensors").read_bytes() == whole


def test_a_copied_cache_is_used_although_its_times_differ(index, tiny):
    folder = model_folder("tiny")
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    (folder.parent.parent / "files").rename(folder.parent.parent / "elsewhere")
    index.vanish()
    assert model_folder("tiny") == folder


def test_processes_that_start_together_build_once(tiny):
    processes = [in_another_process(tiny) for _ in range(3)]
    stages = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 3
    assert sum("dequantizing" in said for said in stages) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_build_killed_half_way_leaves_no_folder_and_the_next_one_succeeds(tiny, cache, share):
    there = f"'dequantizing' in stage and fraction >= {share}"
    killed = in_another_process(tiny, f"if {there}: os.kill(os.getpid(), signal.SIGKILL)")
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not (cache / "models" / "tiny").exists()
    AutoModelForCausalLM.from_pretrained(model_folder("tiny"))
    assert [path.name for path in (cache / "models").iterdir()] == ["tiny"]


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(
        SourceError, match=r"no built-in model 'smolm2-135m'.*did you mean 'smollm2-135m'"
    ) as caught:
        model_folder("smolm2-135m")
    assert "Built in are: smollm2-135m" in str(caught.value)


def test_the_real_model_loads_speaks_its_template_and_stops_at_its_end_token(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    linears = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in name]
    assert (len(linears), len(tokenizer)) == (210, 49152)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert answer[-1] == tokenizer.eos_token_id
    assert "Paris" in tokenizer.decode(answer)


def test_the_real_entry_says_that_its_reference_is_a_4_bit_file():
    entry = zoo.MODELS["smollm2-135m"]
    assert "dequantized 4-bit file" in entry.provenance
    assert "Q4_1" in entry.provenance
    assert entry.group == 64
