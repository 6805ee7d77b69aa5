"""Blind rounds of the chat: when one counts, what many say, and a pair as Markdown."""

from __future__ import annotations

import json

import pytest

from quept.evaluate import wilson
from tests.allocate.test_browser_agrees import SCRIPT
from tests.app.test_number_words import written

ROUNDS = SCRIPT.with_name("rounds.js").read_text("utf-8")
TURN = {"user": "Capital?", "left": "Paris", "right": "Rome", "plans": ["full precision", "W3"]}


def of(function: str, *values):
    return written(ROUNDS, f"{function}({', '.join(json.dumps(value) for value in values)})")[0]


@pytest.mark.parametrize(("right", "rounds"), [(0, 1), (1, 1), (7, 10), (120, 200)])
def test_the_interval_of_the_browser_is_that_of_python(right: int, rounds: int):
    assert of("wilson", right, rounds) == pytest.approx(wilson(right, rounds))


def test_many_rounds_say_whether_it_was_guessing():
    names = ["full precision", "W3"]
    assert of("counted", of("counted", {"right": 0, "rounds": 0}, True), False) == {"right": 1, "rounds": 2}
    few = of("verdict", {"right": 7, "rounds": 10}, names)
    assert (
        few
        == "7 of 10 between full precision and W3: 70 % (95 % interval 40–89 %), guessing is not ruled out."
    )
    assert "you tell them apart" in of("verdict", {"right": 18, "rounds": 20}, names)


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ([TURN], ""),
        ([TURN | {"right": "Paris"}], "same so far"),
        ([TURN | {"right": "Paris"}, TURN], ""),
        ([TURN | {"plans": ["W3", "W3"]}], "Both sides are W3"),
        ([TURN | {"plans": ["W8", "W3"]}, TURN], "changed on the way"),
    ],
)
def test_a_round_counts_only_where_there_is_something_to_tell_apart(turns: list[dict], why: str):
    said = of("undecidable", turns)
    assert why in said and bool(why) == bool(said)


def test_a_pair_as_markdown_has_both_answers_under_their_plans():
    scored = {"right": {"bytes": 84_100_000, "kl": [0.1, 0.2]}}
    assert of("pairText", TURN | {"scored": scored}) == (
        "# Capital?\n\n## full precision\n\nParis\n\n"
        "## W3 (84.1 MB, mean KL 0.15 from full precision over 2 tokens)\n\nRome\n"
    )
