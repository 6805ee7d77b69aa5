"""Turn a GGUF file of a language model into a Hugging Face model folder in 16 bits.

In: a GGUF file of an architecture in `gguf_architectures` (llama.cpp's `llama` is Mistral's too) and an empty
folder. Out, in that folder: config.json, generation_config.json, model.safetensors and a tokenizer with its
chat template, ready for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`, with no
trace of the quantization it came from. Every tensor of the file is used, or the file is refused by name.

Every tensor is dequantized to float32 by the `gguf` package and rounded once, to bfloat16 where the file
holds that, else to float16. transformers can open a GGUF file itself; it takes 15 s, keeps a quantization
config and differs between versions, while these few lines write the same bytes everywhere (a test holds the
two equal). GGUF stores the rows of q and k of a `llama` in the order of interleaved rotary embedding, per
head (2i, 2i+1) -> (i, i + d/2) is transformers' order: `_unpermuted` undoes it; the weights of Gemma's norms
with 1 added; the experts of a block in one tensor. The tokenizer is transformers' own conversion, but for the
splitters and architectures of which it knows none (SPLITTERS).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from quept.files import stream_tensors
from quept.mapped import passing

from .cache import Progress, SourceError, say
from .gguf_architectures import ARCHITECTURES, Architecture, read_as

ROPE_FREQS = "rope_freqs.weight"  # by what each rotary frequency is divided: Llama 3.1's way to long contexts
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
PLAIN = ("F32", "F16", "BF16")
PIECE = 4_000_000  # numbers that are dequantized at once
CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL
# Splitters of byte-level vocabularies that transformers' conversion knows; of others it would say nothing.
KNOWN_SPLITTERS = (
    "llama-bpe",
    "llama3",
    "llama-v3",
    "smaug-bpe",
    "tekken",
    "qwen2",
    "deepseek-r1-qwen",
    "gpt-2",
)
CONVERTED = ("llama", "qwen2", "qwen3")  # types whose byte-level tokenizers transformers converts
WINDOW = "attention.sliding_window"
INSTEAD = "give the folder of the original model"


def convert(source: Path, folder: Path, progress: Progress | None = None) -> None:
    """Write the model folder of the GGUF file `source` into `folder`. SourceError for other kinds."""
    reader = _opened(source)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(reader, tensors, source.name)
    _write_json(folder / "config.json", config)
    special = {name: config[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    _write_json(folder / "generation_config.json", {f"{name}_token_id": id for name, id in special.items()})
    _write_tokenizer(reader, source, folder, config)
    tensors.pop(ROPE_FREQS, None)  # the config says it
    architecture = _architecture(reader)
    named = {name: part for tensor in tensors.values() for name, part in _named(tensor, architecture)}
    done = iter(range(len(named)))

    def dequantized(name: str) -> torch.Tensor:
        say(progress, f"dequantizing {source.name}", next(done) / len(named))
        return _dequantized(*named[name], config, architecture)

    kinds = {
        name: (config["dtype"], tuple(map(int, reversed(t.shape[: t.shape.size - (expert is not None)]))))
        for name, (t, expert) in named.items()
    }
    with passing([source]):
        stream_tensors(folder / "model.safetensors", kinds, dequantized, {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # written 0600: a cache made by root may be read by others


def kinds_in(source: Path) -> dict[str, int]:
    """How many tensors of the GGUF file are stored in which way, the commonest first."""
    return dict(Counter(tensor.tensor_type.name for tensor in _opened(source).tensors).most_common())


def _opened(source: Path) -> gguf.GGUFReader:
    """The file's reader; SourceError for one that is damaged, one part of several, or no text model that is
    read here."""
    try:
        reader = gguf.GGUFReader(source)
    except Exception as error:  # it raises nearly anything
        raise SourceError(f"{source.name} is no whole GGUF file: fetch it again") from error
    parts = _field(reader, "split.count", 0)
    if parts > 1:
        raise SourceError(f"{source.name} is one of {parts} parts: join them with `llama-gguf-split --merge`")
    if _architecture(reader) is None:
        known = ", ".join(dict.fromkeys(one.name for one in ARCHITECTURES))
        name = _field(reader, "general.architecture")
        raise SourceError(
            f"{source.name} holds a {name} model; of GGUF files {known} (with Mistral) are read: "
            f"{INSTEAD}; to add one, write its entry in quept/zoo/gguf_architectures.py"
        )
    return reader


def _architecture(reader: gguf.GGUFReader) -> Architecture | None:
    name = str(_field(reader, "general.architecture"))
    return read_as(name, lambda key: _field(reader, f"{name}.{key}"))


def _field(reader: gguf.GGUFReader, key: str, default: Any = None) -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()


def _config(reader: gguf.GGUFReader, tensors: dict[str, gguf.ReaderTensor], file: str) -> dict[str, Any]:
    architecture = _architecture(reader)
    required = ("attention.head_count", "embedding_length", "feed_forward_length", "block_count")
    required = (*required, "context_length", "attention.layer_norm_rms_epsilon")
    required = (*required, *(key for key in architecture.keys if key != WINDOW))
    lacking = [key for key in required if _field(reader, f"{architecture.name}.{key}") is None]
    lacking += [name for name in ("token_embd.weight",) if name not in tensors]
    lacking += [key for key in ("tokenizer.ggml.tokens",) if reader.get_field(key) is None]
    if lacking:
        raise SourceError(f"{file} lacks {lacking[0]}: {INSTEAD}")

    def of(key: str, default: Any = None) -> Any:
        return _exact(_field(reader, f"{architecture.name}.{key}", default))

    heads, hidden = of("attention.head_count"), of("embedding_length")
    head_dim = of("attention.key_length", of("rope.dimension_count", hidden // heads))
    windowed = 0 < of(WINDOW, 0) < of("context_length")
    rotated = of("rope.dimension_count", head_dim)
    if (rotated != head_dim and not architecture.partial) or (windowed and WINDOW not in architecture.keys):
        raise SourceError(f"{file} rotates a part of each head, or attends to a window: {INSTEAD}")
    entry, activation = architecture.activation
    rope = _rope(of, tensors.get(ROPE_FREQS), head_dim, file)
    if rotated != head_dim:
        rope |= {"partial_rotary_factor": rotated / head_dim}
    if "layer_types" in architecture.computed and of("rope.freq_base_swa"):
        within = {"rope_type": "default", "rope_theta": of("rope.freq_base_swa")}
        rope = {"full_attention": rope, "sliding_attention": within}
    names = ("bos", "eos", "padding", "unknown")
    token = {name: _field(reader, f"tokenizer.ggml.{name}_token_id") for name in names}
    half = any(t.tensor_type.name == "BF16" for t in tensors.values())
    config = {
        "architectures": [architecture.kind],
        "model_type": architecture.model_type,
        "dtype": "bfloat16" if half else "float16",
        "hidden_size": hidden,
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv", heads),
        "head_dim": head_dim,
        entry: activation,
        "attention_bias": architecture.name != "qwen2" and "blk.0.attn_q.bias" in tensors,  # Qwen2 has them
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        "max_position_embeddings": of("context_length"),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope,
        "tie_word_embeddings": "output.weight" not in tensors,
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "bos_token_id": token["bos"],
        "eos_token_id": token["eos"],
        "pad_token_id": token["eos"] if token["padding"] is None else token["padding"],
        "unk_token_id": token["unknown"],
    }
    config |= {name: of(key) for key, name in architecture.keys.items()}
    known = SimpleNamespace(**config)
    return config | {name: value(known) for name, value in architecture.computed.items()}


def _exact(value: Any) -> Any:
    """A number as it was before it was stored as float32: 1e-5 reads back as 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope(of: Any, freqs: gguf.ReaderTensor | None, head_dim: int, file: str) -> dict[str, Any]:
    """The rotary embedding's parameters, as transformers calls them."""
    base = {"rope_theta": of("rope.freq_base", 10000.0)}
    kind, factor = of("rope.scaling.type", "none"), of("rope.scaling.factor", 1.0)
    original = of("rope.scaling.original_context_length")
    if freqs is not None:
        divisors = gguf.quants.dequantize(freqs.data, freqs.tensor_type)
        llama3 = {"rope_type": "llama3", "factor": float(divisors.max()), **LLAMA3}
        if kind == "none" and np.allclose(divisors, llama3_divisors(base["rope_theta"], head_dim, llama3)):
            return base | llama3
    elif kind == "none":
        return base | {"rope_type": "default"}
    elif kind == "linear":
        return base | {"rope_type": "linear", "factor": factor}
    elif kind == "yarn" and original:
        return base | {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise SourceError(f"{file} scales its rotary frequencies in a way that is not read ({kind}): {INSTEAD}")


def llama3_divisors(theta: float, head_dim: int, rope: dict[str, Any]) -> np.ndarray:
    """(head_dim / 2,): what Llama 3.1 divides each rotary frequency by."""
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] / wavelengths
    smooth = ((turns - low) / (high - low)).clip(0, 1)
    return 1 / ((1 - smooth) / rope["factor"] + smooth)


def _named(
    tensor: gguf.ReaderTensor, architecture: Architecture
) -> Iterator[tuple[str, tuple[gguf.ReaderTensor, int | None]]]:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight` and the tensor; of one that holds the
    matrices of experts each, with its number."""
    name, _, leaf = tensor.name.rpartition(".")
    stored = architecture.stored_as(name)
    if stored is None:
        raise SourceError(
            f"the GGUF file has a tensor {tensor.name!r} that a {architecture.name} model does not have"
        )
    for expert in range(int(tensor.shape[2])) if "*" in stored else (None,):
        yield f"{stored.replace('*', str(expert))}.{leaf}", (tensor, expert)


def _dequantized(
    tensor: gguf.ReaderTensor, expert: int | None, config: dict[str, Any], architecture: Architecture
) -> torch.Tensor:
    """A few rows at a time: in float32 and on the way there a tensor takes several times its bytes."""
    data = tensor.data if expert is None else tensor.data[expert]
    shape = tuple(map(int, reversed(tensor.shape)))
    values = torch.empty(shape if expert is None else shape[1:], dtype=getattr(torch, config["dtype"]))
    kind = tensor.name.split(".")[-2]
    offset = architecture.offset if kind.endswith("norm") else 0
    rows = max(1, PIECE // values[0].numel())
    for at in range(0, len(values), rows):
        part = data[at : at + rows] if values.ndim > 1 else data
        found = np.array(gguf.quants.dequantize(part, tensor.tensor_type), np.float32)
        values[at : at + rows] = torch.from_numpy(found - offset if offset else found)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    return _unpermuted(values, heads[kind]) if architecture.interleaved and kind in heads else values


def _unpermuted(values: torch.Tensor, heads: int) -> torch.Tensor:
    """(heads * d, ...) with each head's rows interleaved -> halves."""
    pairs = values.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).reshape(values.shape)


def _write_tokenizer(reader: gguf.GGUFReader, source: Path, folder: Path, config: dict[str, Any]) -> None:
    """The tokenizer of the GGUF file and its chat template, if it has one."""
    kind = _field(reader, "tokenizer.ggml.model")
    splitter = _field(reader, "tokenizer.ggml.pre", "default") if kind == "gpt2" else ""
    known = config["model_type"] in CONVERTED and splitter in KNOWN_SPLITTERS
    if splitter in SPLITTERS and not known:
        return _write_byte_level(reader, folder, config, splitter)
    if kind != "llama" and not known:
        raise SourceError(f"{source.name} has a tokenizer that is not read ({kind} {splitter}): {INSTEAD}")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    except Exception as error:  # a key that is missing, or lists that do not fit
        raise SourceError(f"{source.name} has a damaged tokenizer ({error!r:.80}): {INSTEAD}") from error
    tokenizer.save_pretrained(folder)


def _write_byte_level(reader: gguf.GGUFReader, folder: Path, config: dict[str, Any], splitter: str) -> None:
    """A byte-level BPE as tokenizer.json, its configuration and the chat template."""
    pieces = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges", [])]
    kinds = _field(reader, "tokenizer.ggml.token_type")
    tokenizer = Tokenizer(models.BPE(vocab={piece: id for id, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = SPLITTERS[splitter]()
    tokenizer.decoder = decoders.ByteLevel()
    if _field(reader, "tokenizer.ggml.add_bos_token", False) and config["bos_token_id"] is not None:
        first = pieces[config["bos_token_id"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A $B", special_tokens=[(first, config["bos_token_id"])]
        )
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
    if template := _field(reader, "tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, "utf-8")


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digits() -> pre_tokenizers.PreTokenizer:
    """Every digit by itself, then GPT-2's pattern: what llama.cpp calls "smollm"."""
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _words(digits: str) -> pre_tokenizers.PreTokenizer:
    """Llama 3's pattern, or Qwen2's, which differ by how many digits stay together."""
    split = pre_tokenizers.Split(Regex(WORDS.replace("DIGITS", digits)), "isolated")
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, bytes_alone])


WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITTERS = {  # llama.cpp's name of how text is split before merging -> that
    **dict.fromkeys(("gpt-2", "olmo"), _gpt2),
    **dict.fromkeys(("smollm", "starcoder", "refact"), _digits),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "smaug-bpe", "dbrx", "glm4", "chatglm-bpe"), lambda: _words(r"\p{N}{1,3}")
    ),
    "qwen2": lambda: _words(r"\p{N}"),
}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
