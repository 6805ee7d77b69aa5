"""llama.cpp cuts text as the tokenizer does, for every way of splitting that is written."""

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from quept.export import exporter
from quept.export.gguf import vocabulary
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import CHAT, tiny_model

TEXTS = (
    "Why is the sky blue? It's 1234567 o'clock; THEY'RE late.",
    "Grüße aus Köln — naïve café, ½ €, “quotes”…",
    "漢字とかな、全角！ 你好，世界。 한국어 문장입니다. 🙂👩‍👩‍👧 🇩🇪",
    "def f(x: int) -> str:\n\treturn f'{x:>8}' if x != 0 else \"\"  # done\n\n\n",
    "   leading, \ttabs  and   runs of spaces \n\n and lines \r\n",
    "Привет, мир! مرحبا بالعالم नमस्ते ২০২৪ ٣٤ 3.14159 0xFF",
)
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def byte_level(splitter: tuple[str, ...]) -> Tokenizer:
    """A byte-level BPE of a few merges that splits text this way."""
    steps = {"digits": pre_tokenizers.Digits(individual_digits=True)}
    steps["bytes"] = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = [
        steps[step] if step in steps else pre_tokenizers.Split(Regex(step), "isolated") for step in splitter
    ]
    if "bytes" not in splitter:
        made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(made) if len(made) > 1 else made[0]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def spaced() -> Tokenizer:
    """A BPE on sentencepiece's spelling, its merges those of all pairs of pieces, as transformers has it."""
    space = "\u2581"
    rough = Tokenizer(models.BPE())
    rough.normalizer = normalizers.Replace(" ", space)
    rough.train_from_iterator(TEXTS[:2] * 3, trainers.BpeTrainer(vocab_size=160))
    pieces = sorted(rough.get_vocab(), key=rough.get_vocab().get)
    if space not in pieces:
        pieces.append(space)
    vocab = {piece: id for id, piece in enumerate([*SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), *pieces])}
    merges = [
        (piece[:at], piece[at:])
        for piece in pieces
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)])
    return tokenizer


def elastic_with(core: Tokenizer, folder) -> ElasticModel:
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    tokenizer.chat_template = CHAT
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ElasticModel.open(folder, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    "splitter", [*vocabulary.SPLITTERS, "spaced"], ids=[*vocabulary.SPLITTERS.values(), "llama"]
)
def test_llama_cpp_cuts_every_text_as_we_do(splitter, tmp_path):
    pytest.importorskip("xllamacpp")
    from quept.export.gguf.llama_cpp import LlamaCpp

    elastic = elastic_with(spaced() if splitter == "spaced" else byte_level(splitter), tmp_path / "m")
    exporter("gguf").write(elastic, PrecisionPlan.full(), tmp_path / "x.gguf")
    with LlamaCpp(tmp_path / "x.gguf", context=64, threads=1) as llama:
        for text in TEXTS:
            assert llama.tokens(text) == elastic.tokenizer(text, add_special_tokens=False)["input_ids"], text


def test_a_splitter_without_a_name_is_refused(tmp_path):
    core = byte_level(("bytes",))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    why = exporter("gguf").lacks(elastic_with(core, tmp_path / "m"))
    assert "splits text in a way that llama.cpp has no name for here; export it as packed or hf" in why
