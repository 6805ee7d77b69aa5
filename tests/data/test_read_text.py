"""Texts are read in the encoding that they say, and what is no text is refused, wherever a text is taken."""

import pytest
import torch

from quept import ElasticModel
from quept.cli import main
from quept.config import Recipe, RecipeError
from quept.data.text import sequences
from quept.evaluate import Sample
from quept.files import read_text
from tests.tiny import save_tiny, tiny_tokenizer

TEXT = "naïve café, “quoted” 東京\nand a second line"
BINARY = bytes(range(256)) * 20
ENCODED = {
    "plain": TEXT.encode(),
    "mark": TEXT.encode("utf-8-sig"),
    "mark twice": ("\ufeff" + TEXT).encode("utf-8-sig"),
    "windows": TEXT.replace("\n", "\r\n").encode("utf-16"),
    "big end": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "wide": TEXT.encode("utf-32"),
}
NO_TEXT = {
    "picture": BINARY,
    "other code page": "café".encode("cp1252"),
    "no mark": TEXT.encode("utf-16-le"),
    "half a character": "\ufeff".encode("utf-16") + b"\x00",
    "control characters": b"\x01\x02words",
}


@pytest.mark.parametrize("name", ENCODED)
def test_a_text_is_read_by_its_mark(name, tmp_path):
    (tmp_path / "t.txt").write_bytes(ENCODED[name])
    assert read_text(tmp_path / "t.txt") == TEXT


@pytest.mark.parametrize("name", NO_TEXT)
def test_what_is_no_text_is_refused_by_whoever_reads_one(name, tmp_path):
    file = tmp_path / "t.toml"
    file.write_bytes(NO_TEXT[name])
    for read in (read_text, Sample.read, lambda f: sequences({f: 1.0}, tiny_tokenizer(), 1, 8, 0)):
        with pytest.raises(ValueError, match="t.toml is not (a )?text.*save it as UTF-8"):
            read(str(file))
    with pytest.raises(RecipeError, match="is not (a )?text.*save it as UTF-8"):
        Recipe.load(file)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_more_tokens_than_the_models_context_are_refused_with_its_number(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QUEPT_CACHE", str(tmp_path / "cache"))
    model, text = str(save_tiny(name, tmp_path / name)), tmp_path / "t.txt"
    text.write_text("quick brown foxes " * 40)
    argv = [model, "--text", str(text), "--tokens", "256"]
    assert main(["evaluate", *argv, "--context", "129"]) == 2
    assert main(["sensitivity", *argv, "--context", "129", "--out", str(tmp_path / "s.json")]) == 2
    assert capsys.readouterr().err.count("more than this model's context of 128") == 2
    assert main(["evaluate", *argv]) == 0
    assert "context 128" in capsys.readouterr().out, "unless it was asked for, as much as the model takes"
    with pytest.raises(ValueError, match="context of 128"):
        ElasticModel.open(model).reference(torch.ones(1, 129, dtype=torch.int64))
