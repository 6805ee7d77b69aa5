"""Text from outside reaches a visitor as text."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import gradio as gr
import pytest

from app.toast import shown
from quept.artifact import Source
from quept.evaluate import Results

MARKUP = [
    "<img src=//elsewhere/x onerror=alert(1)>",
    "![x](http://elsewhere/x)",
    "[log in](javascript:alert(1))",
    "<form action=http://elsewhere><button>ok</button></form>",
    '"><svg onload=alert(1)>',
    "`<b>`",
]


@pytest.mark.parametrize("text", MARKUP)
def test_what_is_shown_holds_no_tag_no_picture_and_no_link(text: str):
    assert not re.search(r"[<>\[\]!`]", shown(text))


def test_what_is_shown_reads_the_same():
    import html

    assert html.unescape(shown("a < b & [c](d) *e* _f_ `g` \\h")) == "a < b & [c](d) *e* _f_ `g` \\h"


def test_toasts_are_made_in_one_place():
    app = Path(__file__).parents[2] / "app"
    calls = {
        path.name for path in app.rglob("*.py") if re.search(r"gr\.(Warning|Info|Error)\(", path.read_text())
    }
    assert calls == {"toast.py"}


def test_scripts_write_text_from_outside_as_text():
    """What is given to innerHTML is constant."""
    written = {
        (path.name, line.split("innerHTML")[1].strip())
        for path in (Path(__file__).parents[2] / "app").rglob("*.js")
        for line in path.read_text().splitlines()
        if re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", line)
    }
    assert {name for name, _ in written} <= {"chart.js", "points.js"}  # drawings without any text


@pytest.fixture
def toasts(monkeypatch) -> list[str]:
    """Titles and texts of all toasts, as Gradio gets them."""
    said: list[str] = []
    for name in ("Warning", "Info"):
        monkeypatch.setattr(gr, name, lambda text, title="": said.append(f"{title}{text}"))
    return said


@pytest.mark.parametrize("text", MARKUP)
def test_every_toast_shows_what_it_quotes_as_text(text: str, elastic, tmp_path, toasts):
    from app.pages import chat_answers
    from app.service import Sample, Service
    from app.shell.plans import chosen_point, linked, uploaded

    sample = Sample("The quick brown fox jumps over the lazy dog. " * 40, "foxes", tokens=256, context=64)
    elastic.origin = Source("tiny", "tiny")
    service = Service({"tiny": elastic}, sample, Results.open(tmp_path / "results.sqlite"), tmp_path)
    head = {"format": "quept-plan", "version": 1}
    for plan in ({"layers": {text: 4}}, {"model": text}, {text: 1}, {"version": text}, {"name": text}):
        uploaded(service, "tiny", json.dumps(head | plan).encode())
    for query in (
        {"m": text, "w": "AAAA"},
        {"w": text},
        {"kv": text, "w": "x"},
        {"p": "classify", "w": text},
    ):
        linked(service, query)
    chosen_point(service, "tiny", [], text)
    chat_answers._refuse(text)
    chat_answers._refuse(KeyError(text))
    assert len(toasts) >= 8
    assert not [said for said in toasts if re.search(r"[<>\[\]!`]", said)]


@pytest.mark.parametrize("text", MARKUP)
def test_titles_and_tables_show_a_models_name_as_text(text: str, elastic, tmp_path):
    """A folder may be called anything, and its name is the model's title; Markdown is the only place where a
    title is more than text."""
    from app.serve import build_app
    from app.service import Sample, Service

    named = copy.copy(elastic)
    named.title = named.provenance = text
    named.origin = Source(text, text)
    sample = Sample("The quick brown fox jumps over the lazy dog. " * 40, text, tokens=256, context=64)
    demo = build_app(Service({"tiny": named}, sample, Results.open(tmp_path / "results.sqlite"), tmp_path))
    written = [block.value for block in demo.blocks.values() if isinstance(block, gr.Markdown)]
    assert written and not [value for value in written if text in (value or "")]
