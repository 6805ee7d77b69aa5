"""One file of llama.cpp is open at a time, and its speed is measured once."""

import os

import pytest

from app import llama
from app.gate import Gate
from quept.export.gguf.agreement import Agreement
from quept.export.gguf.llama_cpp import Speed


class Fake:
    opened: list[str] = []

    def __init__(self, path):
        self.opened.append(os.path.basename(path))

    def answer(self, messages, tokens, **sampling):
        yield from ("a", "b")

    def speed(self):
        return Speed(200.0, 74.0, 128, 64, 1)

    def close(self):
        self.opened.append("closed")


@pytest.fixture
def room(monkeypatch):
    monkeypatch.setattr(llama, "LlamaCpp", Fake)
    monkeypatch.setattr(Fake, "opened", [])
    return llama.LlamaRoom()


def test_the_last_file_stays_open_and_another_takes_its_place(room, tmp_path):
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    for path in (one, two):
        path.write_bytes(bytes(2_000_000))
    assert room.caption(one) == "runs as llama.cpp would: 2 MB file, 74 tokens/s"
    assert "".join(room.answer(one, [])) == "ab" and room.speed(one).write == 74
    assert "".join(room.answer(two, [])) == "ab"
    room.close()
    assert Fake.opened == ["one.gguf", "closed", "two.gguf", "closed"]


def test_a_question_that_is_dropped_lets_the_next_in(room, tmp_path):
    path = tmp_path / "one.gguf"
    path.touch()
    first = room.answer(path, [])
    next(first)
    first.close()
    assert next(room.answer(path, [])) == "a"


def test_how_a_file_agrees_is_told_in_words(room, tmp_path, monkeypatch):
    monkeypatch.setattr(llama, "agreement", lambda *_, **__: Agreement(1.2e-3, 6e-3, 1.0, 8))
    (tmp_path / "one.gguf").touch()
    assert room.agreement(None, None, tmp_path / "one.gguf", None, Gate()) == (
        "It finds our view's likeliest token at 100% of 8 positions, KL 0.001; it rounds activations to 8 "
        "bits, which costs our view 0.006."
    )
