"""The handlers of the chat page as plain functions over a tiny model: what is typed is kept, errors are
sentences."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest

from app.conversation import Answer, Frame, Parting
from app.markdown import as_markdown, as_typed
from app.pages import chat, chat_answers
from app.pages.chat_answers import Ask
from app.pages.chat_status import reported
from app.pages.context import PageContext
from app.pages.kept_chat import to_store
from quept.engines.bitsandbytes import BitsAndBytes
from quept.plan import PrecisionPlan
from tests.app.tiny import bench

needs_bitsandbytes = pytest.mark.skipif(bool(BitsAndBytes.missing()), reason="bitsandbytes is not installed")
ASK = Ask("tiny", ("full precision", "W2"), None, max_tokens=16)


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What the page tells the visitor beside the status lines."""
    words: list[str] = []
    for name in ("Warning", "Info"):
        monkeypatch.setattr(gr, name, lambda text, **_: words.append(text))
    return words


@pytest.fixture
def context(service) -> PageContext:
    return PageContext(service)


def settled(changes) -> dict:
    """The page after all changes."""
    page: dict = {}
    for change in changes:
        page |= change
    return page


def shown(part: gr.Chatbot) -> list[dict]:
    return [
        {
            "role": m["role"],
            "content": m["content"][0]["text"] if isinstance(m["content"], list) else m["content"],
        }
        for m in part.value
    ]


def asked(context, ask=ASK, history=(), prompt="Hello", visitor="a") -> dict:
    return settled(chat_answers.send(context, ask, list(history), prompt, visitor))


def test_a_message_is_answered_on_both_sides(context, said):
    changes = list(chat_answers.send(context, ASK, [], "Hello", "a"))
    assert changes[0]["prompt"] == "" and changes[0]["stop"].visible and not changes[0]["send"].visible
    page = settled(changes)
    assert page["send"].visible and not page["stop"].visible
    (turn,) = page["history"]
    assert turn["user"] == "Hello" and turn["left"] and turn["right"]
    assert page["status_left"]["state"] == page["status_right"]["state"] == "done"
    assert not said


def test_the_second_turn_shows_each_side_its_own_answers(context):
    first = asked(context)["history"]
    history = asked(context, history=first, prompt="And?")["history"]
    assert [turn["user"] for turn in history] == ["Hello", "And?"]
    left, right = chat_answers.messages(history, "left"), chat_answers.messages(history, "right")
    assert left[::2] == right[::2] and left[1]["content"] == first[0]["left"]


@pytest.mark.parametrize("prompt", ["", "   \n ", None])
def test_an_empty_message_changes_nothing(context, said, prompt):
    assert asked(context, prompt=prompt) == {}
    assert "type a message" in said[0]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("<|start|><|end|>", "control tokens"),
        ("x" * 100_000, "shorten it"),
        ("long words " * 300, "shorten the message"),
    ],
)
def test_a_message_that_cannot_be_answered_is_kept_and_the_reason_said(context, said, prompt, words):
    before = asked(context)["history"]
    page = asked(context, history=before, prompt=prompt)
    assert page["history"] == before and page.get("prompt", prompt) == prompt
    assert len(said) == 1 and words in said[0]
    assert "send" not in page or page["send"].visible


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": math.nan}, "temperature must be a number"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": None}, "temperature"),
        ({"top_p": 0}, "top-p must be above 0"),
        ({"top_p": math.inf}, "top-p"),
        ({"max_tokens": 1e9}, "longest answer"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"seed": None}, "seed"),
        ({"seed": "<b>1</b>"}, "seed"),
        ({"choices": ("full precision", "<b>no</b>")}, "not"),
        ({"model": "other"}, "reload the page"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_words(context, said, changes, words):
    page = asked(context, replace(ASK, **changes))
    assert page["history"] == [] and "prompt" not in page
    assert len(said) == 1 and words.lower() in said[0].lower() or "choices" in changes
    assert "<b>" not in said[0]


def test_regenerate_after_a_change_keeps_the_seed_and_otherwise_draws_one(context, said):
    ask = replace(ASK, temperature=1.0)
    history = asked(context, ask)["history"]
    changed = settled(chat_answers.regenerate(context, replace(ask, choices=("W2", "W2")), history, "a"))
    assert "seed" not in changed and len(changed["history"]) == 1
    again = settled(chat_answers.regenerate(context, ask, history, "a"))
    assert again["seed"] != ask.seed and again["history"][0]["user"] == "Hello"
    assert not said


def test_regenerate_at_temperature_0_says_why_nothing_changes(context, said):
    history = asked(context)["history"]
    again = settled(chat_answers.regenerate(context, ASK, history, "a"))
    texts = [[turn[side] for side in ("left", "right")] for turn in (*again["history"], *history)]
    assert texts[0] == texts[1] and "temperature 0" in said[0]
    assert settled(chat_answers.regenerate(context, ASK, [], "a")) == {}


def test_editing_a_message_answers_from_there(context, said):
    history = asked(context, history=asked(context)["history"], prompt="And?")["history"]
    edited = settled(chat_answers.edit(context, ASK, history, 0, as_markdown("Is <b> bold?"), "a"))["history"]
    assert [turn["user"] for turn in edited] == ["Is <b> bold?"]
    for index, text in [(1, "an answer"), (0, " "), (99, "x"), (None, "x")]:
        kept = settled(chat_answers.edit(context, ASK, history, index, text, "a"))
        assert kept["history"] == history and len(shown(kept["chat_left"])) == 4
    assert len(said) == 4


def test_stop_keeps_what_was_written(context):
    changes = chat_answers.send(context, replace(ASK, max_tokens=400, temperature=1.0), [], "Hello", "a")
    page: dict = {}
    for change in changes:
        page |= change
        if page["history"][0]["left"] and page["history"][0]["right"]:
            chat_answers.stop(context, "a")
            chat_answers.stop(context, "a")
    assert page["send"].visible and page["history"][0]["left"]
    chat_answers.stop(context, "a")


def test_stop_before_the_first_word_gives_the_message_back(context, service):
    service.admission._slots = 1
    with service.admission.enter():
        changes = chat_answers.send(context, ASK, [], "Hello", "a")
        waiting = next(changes)
        assert waiting["status_left"]["words"] == "Waiting: place 1 in line"
        chat_answers.stop(context, "a")
        page = settled(changes)
    assert page["prompt"] == "Hello" and page["history"] == [] and page["send"].visible


def test_a_newer_question_of_the_visitor_takes_the_page_over(context):
    older = chat_answers.send(context, replace(ASK, max_tokens=400, temperature=1.0), [], "Old", "a")
    next(older)
    newer = asked(context, prompt="New")
    assert newer["history"][0]["user"] == "New"
    assert list(older) == []


def test_a_tab_closed_mid_answer_leaves_nothing(context, service):
    changes = chat_answers.send(context, replace(ASK, max_tokens=400, temperature=1.0), [], "Hello", "a")
    for change in changes:
        if change["history"][0]["left"]:
            break
    context.forget("a")
    changes.close()
    assert len(context.pool) == 0 and not context.running._jobs
    with service.admission.enter() as place, service.gate:
        assert list(place.wait()) == []


def test_clear_forgets_the_conversation(context):
    asked(context)
    assert len(context.pool) == 3  # both sides, and full precision reading what one of them wrote
    page = chat_answers.clear(context, ASK, "a")
    assert page["history"] == [] and shown(page["chat_left"]) == [] and len(context.pool) == 0
    assert page["status_left"]["state"] == "idle" and page["examples"].visible


def test_a_failure_is_a_sentence_and_nothing_is_lost(context, said, elastic, monkeypatch):
    monkeypatch.setattr(elastic, "prepare", lambda plan: (1 / zero for zero in (0,)))
    page = asked(context)
    assert page["prompt"] == "Hello" and page["history"] == []
    assert page["status_left"]["state"] == "error" and "ZeroDivision" not in page["status_left"]["words"]
    assert len(said) == 1 and "Traceback" not in said[0]


def test_the_parting_is_said_on_both_sides_and_marked_in_the_text(context):
    page = asked(context)
    left, right = page["status_left"], page["status_right"]
    assert left["parted"] and left["line"].startswith(
        ("The sides first differ at token ", "The sides differ from token ")
    )
    for status, side in ((left, "left"), (right, "right")):
        if status["mark"]:
            assert status["text"] == page["history"][0][side] and status["mark"][0] < len(status["text"])


def test_equal_plans_are_said_to_be_identical(context):
    page = asked(context, replace(ASK, choices=("W2", "W2")))
    assert page["status_left"]["line"].startswith("Identical: both sides wrote the same")


def test_the_equalisers_plan_is_used_and_named(context, elastic):
    plan_json = {"w": [2] * len(elastic.layers), "a": [16] * len(elastic.layers), "kv": 16}
    page = asked(context, replace(ASK, choices=("equaliser", "W2"), plan_json=plan_json))
    assert page["history"][0]["left"] == page["history"][0]["right"]
    assert "your plan, mixed" in page["status_left"]["words"]
    assert set(
        chat_answers.statuses(
            context, replace(ASK, choices=("equaliser", "W2"), plan_json=plan_json), only=["equaliser"]
        )
    ) == {"status_left"}


@needs_bitsandbytes
def test_a_baseline_answers_like_a_plan(context, said, elastic):
    ask = replace(ASK, choices=("nf4", "baseline:int8"))  # as links of earlier releases say it
    idle = chat_answers.statuses(context, ask)
    assert idle["status_left"]["words"] == "Next answer: bitsandbytes NF4"
    page = asked(context, ask)
    assert page["history"][0]["left"] and page["history"][0]["right"] and not said
    for side, name in (("left", "nf4"), ("right", "int8")):
        facts = {fact: shown for fact, shown, _ in page[f"status_{side}"]["facts"]}
        assert facts["Deploy"] == f"{elastic.sizes.deploy(PrecisionPlan.uniform(name)) / 1e6:.1f} MB"
        assert "tok/s" in facts["Speed"] and "ms" in facts["Switch"]
    assert page["status_right"]["words"].endswith("bitsandbytes LLM.int8")
    (again,) = settled(chat_answers.regenerate(context, ask, page["history"], "a"))["history"]
    assert [again[side] for side in ("left", "right")] == [page["history"][0][s] for s in ("left", "right")]
    assert len(context.pool) == 2  # NF4's and its scoring; int8 keeps nothing between turns


def test_a_baseline_without_bitsandbytes_is_not_offered_and_refused_in_words(context, said, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not any("bitsandbytes" in label for label, _ in context.service.choices("tiny"))
    page = asked(context, replace(ASK, choices=("W2", "baseline:nf4")))
    assert "pip install bitsandbytes" in page["status_right"]["words"]
    assert page["history"][0]["left"] and page["status_left"]["state"] == "done"


def test_choosing_another_model_empties_the_chat_and_keeps_what_choices_it_can(context):
    page = chat_answers.switched(context, replace(ASK, choices=("W4", "gone")), [], "a")
    assert page["plan_left"].value == "W4" and page["plan_right"].value == "equaliser"
    assert page["history"] == []


@pytest.mark.parametrize("first", ["on_switch", "on_return"])
def test_a_link_to_a_chat_with_another_model_restores_it_whichever_event_comes_first(service, first):
    service.models["other"] = service.models["tiny"]
    with gr.Blocks():
        page = chat.build(PageContext(service, {"tiny": None, "other": None}, bench=bench("tiny")))
        events = {fn.name: fn.fn for fn in gr.context.Context.root_block.fns.values() if fn.name}
    turn = {"user": "Hello", "left": "one", "right": "two", "made_with": "", "plans": ["W4", "W2"]}
    text, settings = (
        to_store("other", [turn]),
        ["other", "W4", "equaliser", None, "", 0, 0.9, 16, 0, "as planned"],
    )
    entered, drawn = "tiny", {}
    for event in sorted(["on_switch", "on_return"], key=lambda name: name != first):
        change = events[event](SimpleNamespace(session_hash="a"), entered, text, *settings)
        entered, drawn = change.get(page.entered, entered), drawn | change
    assert entered == "other" and [turn["user"] for turn in drawn[page.history]] == ["Hello"]


@pytest.mark.parametrize(
    "text",
    [
        "a <img src=x> b",
        "</div><script>alert(1)</script>",
        "~~~\n```\n~~~\n<b>",
        "- ```\n<i>\n```~~\n<b style=x>",
        "> ```html\nx\n\n<b>",
        "```mermaid\n<b>\n```\n<i>",
        "<!-- x --><?php",
    ],
)
def test_no_tag_survives_outside_fenced_code(text):
    outside, fenced = [], False
    for line in as_markdown(text).split("\n"):
        if line.startswith("```"):
            fenced = not fenced
            assert "mermaid" not in line
        elif not fenced:
            outside.append(line)
    assert not any("<" + c in line for line in outside for c in "bi/!?s")
    assert "~~~" not in "".join(outside)


def test_fenced_code_and_ordinary_text_stay_as_they_are():
    text = "Use **bold**, 1 < 2:\n\n```python\nif a <b>c: print('<b>')\n```\nDone."
    assert as_markdown(text) == text
    assert as_typed(as_markdown("a <b> c")) == "a <b> c"


def test_tags_entities_and_formulas_reach_the_page_as_they_were_written():
    """What Markdown would read as markup has a joiner in it, which the page takes out again."""
    text = "`#include <stdio.h>` and \\(a^2\\), \\[x\\] \\\\ &lt; $5"
    markdown = as_markdown(text)
    assert as_typed(markdown) == text
    for markup in ("<s", "\\(", "\\)", "\\[", "\\]", "\\\\", "&l"):
        assert markup in text and markup not in markdown
    assert as_markdown("snake\\_case \\*not bold\\*") == "snake\\_case \\*not bold\\*", "escapes of Markdown"


def test_the_page_is_drawn_with_names_and_labels(service):
    with warnings.catch_warnings(), gr.Blocks() as blocks:
        warnings.simplefilter("error", UserWarning)  # Gradio's, about handlers that do not fit
        page = chat.build(PageContext(service, {"tiny": None}, bench=bench("tiny")))
    ids = [part.elem_id for name, part in vars(page).items() if name not in ("history", "entered")]
    assert all(ids) and len(set(ids)) == len(ids)
    assert len(blocks.blocks) < 50
    assert {"chat-prompt", "chat-send", "chat-stop", "chat-left", "chat-right", "chat-status-left"} <= set(
        ids
    )


def answer_of(*words: str) -> Answer:
    """An answer that ended, of a token a word."""
    starts = [sum(len(word) + 1 for word in words[:i]) for i in range(len(words))]
    spans = tuple((start, len(word)) for start, word in zip(starts, words, strict=True))
    return Answer("done", " ".join(words), spans=spans)


@pytest.mark.parametrize(
    "said, line, marked",
    [
        ("the sea is grey and wide and deep", "The sides first differ at token 4: “blue” here", [[11, 4]]),
        ("the sea is where all my ships go", "The sides differ from token 4 on: “blue” here", []),
    ],
)
def test_single_differences_are_marked_and_texts_that_go_apart_are_not(said: str, line: str, marked: list):
    one, other = ["the", "sea", "is", "blue", "and", "wide", "and", "deep"], said.split()
    parting = Parting(3, (one[3], other[3]), (11, 11))
    frame = Frame((answer_of(*one), answer_of(*other)), parting=parting)
    left, _ = reported([PrecisionPlan.full()] * 2, frame).values()
    assert left["line"].startswith(line) and left["differs"] == marked and left["mark"] == [11, 4]
