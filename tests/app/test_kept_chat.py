"""A chat that the browser keeps over a reload: it comes back as it was, and nothing else is taken."""

from __future__ import annotations

import json

import pytest

from app.pages.kept_chat import from_store, to_store

SCORED = {"plan": "W4", "key": "k", "bytes": 9, "bits_per_param": 4.5, "kl": [0.1, 0.0], "same": 1}
TURN = {"user": "a", "left": "b", "right": "c", "made_with": "x", "plans": ["W4", "W3"]}
HISTORY = [TURN | {"scored": {"left": SCORED}}]


def test_a_chat_comes_back_as_it_was_but_not_to_another_model():
    text = to_store("tiny", HISTORY)
    assert from_store(text, "tiny") == HISTORY
    assert from_store(text, "other") == [] == from_store("", "tiny")


@pytest.mark.parametrize(
    "turn",
    [
        TURN | {"left": 3},
        TURN | {"plans": ["W4"]},
        TURN | {"more": 1},
        TURN | {"scored": {"left": SCORED | {"kl": [float("nan")]}}},
        TURN | {"scored": {"middle": SCORED}},
        "turn",
    ],
)
def test_what_is_not_of_its_form_is_not_taken(turn):
    assert from_store(json.dumps({"model": "tiny", "turns": [turn]}), "tiny") == []
    assert from_store("[" * 100_000, "tiny") == []
