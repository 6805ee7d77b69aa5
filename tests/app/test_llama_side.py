"""A side of the chat answers through llama.cpp: from the file of the visitor's plan, beside one of ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.pages import chat_answers
from app.pages.chat_answers import Ask
from app.pages.context import PageContext
from app.side import LLAMA
from quept.export import exporter
from tests.app.tiny import FakeService


class FakeExports:
    """One file, counted."""

    def __init__(self, path: Path):
        self.file, self.made = path, 0

    def make(self, opened, plan, name, gate) -> Iterator[dict]:
        yield {"status": "making", "fraction": 0.5}
        self.made += not self.file.exists()
        self.file.write_bytes(b"GGUF")
        yield {"status": "done", "fraction": 1.0}

    def path(self, opened, plan, name) -> Path | None:
        return self.file if self.file.exists() else None


class FakeRoom:
    missing = ""

    def __init__(self):
        self.asked: list[list[dict]] = []
        self.open = 0

    def caption(self, path) -> str:
        return "runs as llama.cpp would: 84 MB file, 74 tokens/s"

    def speed(self, path):
        return SimpleNamespace(write=74.0)

    def answer(self, path, messages, tokens, **sampling) -> Iterator[str]:
        self.asked.append(messages)
        self.open += 1
        try:
            yield from ["It ", "scatters", "."][:tokens]
        finally:
            self.open -= 1


@pytest.fixture
def context(elastic, tmp_path: Path) -> PageContext:
    service = FakeService({"tiny": elastic})
    sizes = exporter("gguf").sizes(elastic)
    service.opened = {"tiny": SimpleNamespace(elastic=elastic, name="tiny", file_sizes=lambda target: sizes)}
    service.exports, service.llama = FakeExports(tmp_path / "w4.gguf"), FakeRoom()
    return PageContext(service)


def ask(elastic, **changes) -> Ask:
    plan_json = {"w": [4] * len(elastic.layers)}
    return replace(Ask("tiny", ("W4", LLAMA), plan_json, max_tokens=16), **changes)


def asked(context, now: Ask, history=()) -> dict:
    page: dict = {}
    for change in chat_answers.send(context, now, list(history), "Why is the sky blue?", "a"):
        page |= change
    return page


def test_llama_cpp_answers_beside_our_view_and_says_its_file_and_speed(context, elastic):
    page = asked(context, ask(elastic, system="Be short."))
    (turn,) = page["history"]
    assert (
        turn["right"] == "It scatters."
        and turn["left"]
        and turn["plans"][1] == "your plan in llama.cpp, mixed"
    )
    status = page["status_right"]
    assert status["state"] == "done" and status["words"] == "Done, your plan in llama.cpp, mixed"
    assert status["note"] == "Runs as llama.cpp would: 84 MB file, 74 tokens/s; its tokens are not scored"
    assert ["Speed", "74.0 tok/s"] in [fact[:2] for fact in status["facts"]]
    assert [m["role"] for m in context.service.llama.asked[0]] == ["system", "user"]


def test_the_file_is_made_once_and_the_conversation_goes_on(context, elastic):
    first = asked(context, ask(elastic))["history"]
    asked(context, ask(elastic), first)
    assert context.service.exports.made == 1 and context.service.llama.open == 0
    assert context.service.llama.asked[1][1] == {"role": "assistant", "content": "It scatters."}


def test_both_sides_may_be_llama_cpp(context, elastic):
    (turn,) = asked(context, ask(elastic, choices=(LLAMA, LLAMA)))["history"]
    assert turn["left"] == turn["right"] == "It scatters."


def test_a_file_that_cannot_be_made_is_a_sentence_and_the_other_side_goes_on(context, elastic, monkeypatch):
    full = iter([{"status": "error", "message": "The disk is full.", "fraction": 0.5}])
    monkeypatch.setattr(FakeExports, "make", lambda *_: (state for state in full))
    page = asked(context, ask(elastic))
    assert page["status_right"]["state"] == "error" and page["status_right"]["words"] == "The disk is full."
    assert page["status_left"]["state"] == "done"


def test_llama_cpp_is_offered_where_it_runs_and_a_plan_that_no_file_holds_is_refused_in_words(
    context, elastic
):
    assert ("Your plan in llama.cpp", LLAMA) in chat_answers.choices(context, "tiny")
    status = chat_answers.statuses(context, ask(elastic, kv="4"))["status_right"]
    assert status["state"] == "error" and "GGUF" in status["words"]
    context.service.llama.missing = "llama.cpp runs here with the package xllamacpp"
    assert LLAMA not in dict(map(reversed, chat_answers.choices(context, "tiny")))
    assert "xllamacpp" in chat_answers.statuses(context, ask(elastic))["status_right"]["words"]
