"""Calibration windows: in their shares, the same every time, never evaluation text."""

import pytest
import torch

from quept import zoo
from quept.data.base import Wanted
from quept.data.text import Text, sequences
from quept.models import load
from tests.tiny import save_tiny, tiny_tokenizer


@pytest.fixture
def files(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name * 400)
    return {str(tmp_path / "a"): 3.0, str(tmp_path / "b"): 1.0}


def test_sources_have_their_shares(files):
    ids = sequences(files, tiny_tokenizer(), 40, 16, seed=0)
    a = tiny_tokenizer()("a", add_special_tokens=False)["input_ids"][0]
    assert ids.shape == (40, 16) and int((ids[:, 0] == a).sum()) == 30


def test_the_same_seed_gives_the_same_windows_and_another_seed_others(tmp_path):
    (tmp_path / "t").write_text(" ".join(map(str, range(900))))
    first, again, other = (sequences({str(tmp_path / "t"): 1}, tiny_tokenizer(), 9, 32, s) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({tuple(row.tolist()) for row in first}) == 9


@pytest.mark.slow
def test_chats_are_written_in_the_models_own_template():
    text = zoo.chats("gsm8k-chats")[0]
    assert [turn["role"] for turn in text] == ["user", "assistant"]
    ids = sequences({"gsm8k-chats": 1}, tiny_tokenizer(), 2, 256, seed=0)
    assert "assistant\n" in tiny_tokenizer().decode(ids.flatten())


@pytest.mark.slow
def test_programs_have_the_line_ends_of_other_texts():
    programs = zoo.text("mbpp-programs")
    assert programs.count("def ") > 400 and "\r" not in programs


def test_evaluation_text_is_refused():
    with pytest.raises(ValueError, match="measured on: calibrate on squad-passages"):
        sequences({"lambada": 1}, tiny_tokenizer(), 1, 8, 0)


def test_calibration_text_shares_no_passage_with_evaluation_text():
    calibration = {
        p
        for name, e in zoo.TEXTS.items()
        if e.use == "calibrate" and not e.chats
        for p in zoo.text(name).split("\n\n")
    }
    evaluation = {p for name in ("boolq-passages", "lambada") for p in zoo.text(name).split("\n\n")}
    assert not calibration & evaluation


def test_a_calibration_text_with_a_token_that_has_no_embedding_is_refused_in_words(tmp_path):
    folder = save_tiny("llama", tmp_path / "m")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|turn|>"])
    tokenizer.save_pretrained(folder)
    (tmp_path / "t").write_text("some <|turn|> words " * 40)
    wanted = Wanted(block_wise=4, end_to_end=0, held_out=2, context=16, seed=0)
    with pytest.raises(
        ValueError, match=r"'<\|turn\|>' token 260, and the model has embeddings for 260 tokens"
    ):
        Text({str(tmp_path / "t"): 1.0}).read(load(folder), wanted, lambda *_: None)
