"""The share card of a plan: what it says, measured or predicted."""

from __future__ import annotations

import json

import pytest

from tests.allocate.test_browser_agrees import SCRIPT
from tests.app.test_number_words import written

SOURCES = "\n".join(SCRIPT.with_name(name).read_text("utf-8") for name in ("dom.js", "plan.js", "card.js"))
METRICS = [
    {"name": "ppl", "label": "Perplexity", "unit": ""},
    {"name": "top1", "label": "Accuracy", "unit": "share"},
    {"name": "kl", "label": "Mean KL", "unit": ""},
]
TELLING = {
    "bytes": 75_000_000,
    "full_bytes": 270_000_000,
    "words": "W mixed 4.5 · A16",
    "plan": {"w": [4, 5]},
    "link": {"m": "tiny", "w": "AAAA"},
    "predicted": {"kl": 0.21},
}
CURRENT = {"kind": "current", "measured": True, "bytes": 75_000_000, "top1": 0.9132, "kl": 0.1837}


@pytest.mark.parametrize(
    ("telling", "points", "quality"),
    [
        (TELLING, [CURRENT], "Accuracy 91.3 % · Mean KL 0.184, measured"),
        (TELLING, [CURRENT | {"bytes": 60_000_000}], "Mean KL 0.21, predicted"),
        (
            TELLING | {"predicted": {"ppl": 21.6}, "reference": {"ppl": 20.4}},
            [],
            "Perplexity 21.6 (full precision: 20.4), predicted",
        ),
        (TELLING | {"predicted": {"kl": 3.2e-8}}, [], "Mean KL <0.0001, predicted"),
        (TELLING | {"predicted": None}, [], "quality not measured yet"),
    ],
)
def test_a_card_says_size_quality_and_link(telling: dict, points: list[dict], quality: str):
    known, href = {"metrics": METRICS, "points": points}, "http://here/?p=chat"
    call = f"cardOf({json.dumps(telling)}, {json.dumps(known)}, 'Tiny', '{href}')"
    (card,) = written(SOURCES, call)
    assert card["quality"] == quality
    assert card["size"] == "75.0 MB, 28 % of full precision's 270.0 MB"
    assert card["link"] == "http://here/?p=chat&m=tiny&w=AAAA"


def test_a_link_is_broken_and_not_squeezed():
    short, long = written(
        SOURCES, *(f"linesOf('{'x' * n}', (words) => words.length <= 10)" for n in (25, 45))
    )
    assert short == ["x" * 10, "x" * 10, "x" * 5] and long == ["x" * 10, "x" * 10, "x" * 9 + "…"]
