"""Turn a llama-family GGUF file into a Hugging Face model folder in float16.

In: a GGUF file (architecture `llama`, byte-level BPE vocabulary) and an empty folder. Out, in that folder:
config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json and
chat_template.jinja, ready for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`,
with no trace of the quantization it came from.

Every tensor is dequantized to float32 by the `gguf` package and rounded once to float16. transformers can
open a GGUF file itself; it takes 15 s, keeps a quantization config and differs between versions, while these
few lines write the same bytes everywhere (a test holds the two equal). GGUF stores the rows of q and k in the
order of interleaved rotary embedding, per head (2i, 2i+1) -> (i, i + d/2) is transformers' order:
`_unpermuted` undoes it.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from .cache import Progress, SourceError, say

TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL


def convert(source: Path, folder: Path, progress: Progress | None = None) -> None:
    """Write the model folder of the GGUF file `source` into `folder`. SourceError for other kinds."""
    reader = gguf.GGUFReader(source)
    architecture = _field(reader, "general.architecture")
    vocabulary = _field(reader, "tokenizer.ggml.model")
    if (architecture, vocabulary) != ("llama", "gpt2"):
        raise SourceError(
            f"{source.name} holds a {architecture} model with a {vocabulary} vocabulary; "
            "only llama with gpt2 is read: give the folder of the original model"
        )
    config = _config(reader)
    _write_json(folder / "config.json", config)
    special = {name: config[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    _write_json(folder / "generation_config.json", {f"{name}_token_id": id for name, id in special.items()})
    _write_tokenizer(reader, folder, config)
    tensors = {}
    for done, tensor in enumerate(reader.tensors):
        say(progress, f"dequantizing {source.name}", done / len(reader.tensors))
        tensors[_name(tensor.name)] = _dequantized(tensor, config)
    say(progress, f"writing {folder.name.strip('.').removesuffix('.building')}")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # written 0600: a cache made by root may be read by others


def kinds_in(source: Path) -> Counter[str]:
    """How many tensors of the GGUF file are stored in which way, the commonest first."""
    kinds = Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(source).tensors)
    return Counter(dict(kinds.most_common()))


def _field(reader: gguf.GGUFReader, key: str, default: Any = None) -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()


def _config(reader: gguf.GGUFReader) -> dict[str, Any]:
    def of(key: str, default: Any = None) -> Any:
        return _field(reader, f"llama.{key}", default)

    heads, hidden = of("attention.head_count"), of("embedding_length")
    names = ("bos", "eos", "padding", "unknown")
    token = {name: _field(reader, f"tokenizer.ggml.{name}_token_id") for name in names}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "hidden_size": hidden,
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv", heads),
        "head_dim": of("rope.dimension_count", hidden // heads),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": of("context_length"),
        # stored as float32: 1e-5 reads back as 9.999999747378752e-06
        "rms_norm_eps": float(str(np.float32(of("attention.layer_norm_rms_epsilon")))),
        "rope_parameters": {"rope_theta": of("rope.freq_base", 10000.0), "rope_type": "default"},
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "vocab_size": len(reader.get_field("tokenizer.ggml.tokens").data),
        "bos_token_id": token["bos"],
        "eos_token_id": token["eos"],
        "pad_token_id": token["eos"] if token["padding"] is None else token["padding"],
        "unk_token_id": token["unknown"],
    }


def _name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    *block, kind, leaf = name.split(".")
    if kind not in TENSORS or (block and block[0] != "blk"):
        raise SourceError(f"the GGUF file has a tensor {name!r} that a llama model does not have")
    return ".".join([*(["model.layers", block[1]] if block else []), TENSORS[kind], leaf])


def _dequantized(tensor: gguf.ReaderTensor, config: dict[str, Any]) -> np.ndarray:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    kind = tensor.name.split(".")[-2]
    if kind in heads:
        values = _unpermuted(values, heads[kind])
    return np.ascontiguousarray(values, dtype=np.float16)


def _unpermuted(values: np.ndarray, heads: int) -> np.ndarray:
    """(heads * d, columns) with each head's rows interleaved -> halves."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_tokenizer(reader: gguf.GGUFReader, folder: Path, config: dict[str, Any]) -> None:
    """The byte-level BPE of the GGUF file as tokenizer.json, its configuration and the chat template."""
    pieces = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    kinds = _field(reader, "tokenizer.ggml.token_type")
    splitter = _field(reader, "tokenizer.ggml.pre")
    if splitter not in SPLITTERS:
        raise SourceError(f"pre-tokenizer {splitter!r} is not known; known are {', '.join(SPLITTERS)}")
    tokenizer = Tokenizer(models.BPE(vocab={piece: id for id, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = SPLITTERS[splitter]()
    tokenizer.decoder = decoders.ByteLevel()
    special = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": config[f"{name}_token_id"] for name in ("bos", "eos", "pad", "unk")}
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "add_prefix_space": False,
            **{name: pieces[id] for name, id in names.items() if id is not None},
        },
    )
    (folder / "chat_template.jinja").write_text(_field(reader, "tokenizer.chat_template"), "utf-8")


def _smollm_splitter() -> pre_tokenizers.PreTokenizer:
    """Every digit by itself, then GPT-2's pattern: what llama.cpp calls "smollm"."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


SPLITTERS = {"smollm": _smollm_splitter}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
