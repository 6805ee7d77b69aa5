"""Text from outside reaches a visitor as text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.toast import shown

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
    assert {name for name, _ in written} <= {"chart.js"}
