"""The Ask page's handlers on a tiny vision-language model: the answers are the model's, each visitor has
their own pictures and questions, and whatever is sent becomes a picture, an answer or a sentence."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import torch
from PIL import Image, ImageDraw

from app import conversation
from app.components.easel import picture_of
from app.conversation import Answer, Frame
from app.pages import ask, ask_answers, ask_words
from app.pages.ask_answers import (
    Setting,
    again,
    clear,
    easel,
    enter,
    given,
    send,
    statuses,
    switched,
)
from app.pages.context import PageContext
from app.scenes import EASY_VQA, PAINTS, Gallery
from app.service import Service
from quept import ElasticModel, PrecisionPlan
from quept.data.easy_vqa import Question, Questions
from quept.evaluate import Results, Sample
from quept.runtime import visual
from tests.app.tiny import bench
from tests.tiny_vlm import save_tiny_vlm
from tests.training import script

MODEL = "tiny"
ALIKE, APART = Setting(MODEL, ("W8", "W8")), Setting(MODEL, ("full precision", "W2"))


def shape(kind: str = "circle", colour: str = "red", ground="#f4f8ff", size: int = 64) -> Image.Image:
    picture = Image.new("RGB", (size, size), ground)
    box = (size // 4, size // 4, size // 2, size // 2)
    pen = ImageDraw.Draw(picture)
    pen.ellipse(box, PAINTS.get(colour, colour)) if kind == "circle" else pen.rectangle(
        box, PAINTS.get(colour, colour)
    )
    return picture


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def stored() -> Questions:
    """Two pictures with three questions each."""
    asked = (
        ("what shape is present?", "circle"),
        ("what color is the shape?", "red"),
        ("is there a circle?", "yes"),
    )
    other = (
        ("what shape is present?", "rectangle"),
        ("what color is the shape?", "blue"),
        ("is there a circle?", "no"),
    )
    pixels = [shape("circle", "red"), shape("rectangle", "blue")]
    tensors = [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).view(64, 64, 3) for p in pixels]
    rows = [Question(*q, picture) for picture, pairs in enumerate((asked, other)) for q in pairs]
    return Questions("easy-VQA, test", torch.stack(tensors), tuple(rows))


@pytest.fixture(scope="module")
def elastic(tmp_path_factory) -> ElasticModel:
    folder = save_tiny_vlm("llava", tmp_path_factory.mktemp("ask") / "llava")
    return ElasticModel.open(folder, device="cpu", dtype=torch.float32)


@pytest.fixture
def context(elastic: ElasticModel, tmp_path: Path, monkeypatch) -> PageContext:
    monkeypatch.setattr(ask_answers, "FETCH_S", 0.0)
    monkeypatch.setattr(ask_answers, "LONGEST_ANSWER", 6)
    service = Service({MODEL: elastic}, Sample("", ""), Results.open(tmp_path / "results.sqlite"), tmp_path)
    return PageContext(service, {MODEL: Gallery(elastic, stored())})


@pytest.fixture
def said(monkeypatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda text, **_: said.append(text))
    return said


def asked(
    context: PageContext, question: str, thread=(), picture=None, setting=APART, visitor: str = "a"
) -> dict:
    """The page after the answer."""
    picture = picture or {"id": "example:0"}
    page = {"thread": list(thread)}
    for change in send(context, setting, list(thread), picture, question, visitor):
        page |= change
    return page


def test_both_sides_answer_and_where_they_differ_is_marked_and_said(context: PageContext):
    page = asked(context, "what color is the shape?")
    (turn,) = page["thread"]
    left, right = turn["shown"]["sides"]
    assert left["state"] == right["state"] == "done" and left["label"] == "full precision"
    assert "".join(left["text"]) == turn["left"] != turn["right"] == "".join(right["text"])
    assert turn["shown"]["parted"] and "at full precision" in turn["shown"]["line"]
    assert turn["left"].startswith(left["text"][0]) and turn["right"].startswith(left["text"][0])
    assert turn["shown"]["source"].startswith("data:image/") and page["question"] == ""
    assert left["right"] is False, "the known answer is red"
    assert "Deploy" in page["status_left"]["facts"][0] and "size" in page["status_right"]["line"]
    assert json.dumps([page["talk"], page["status_left"]], allow_nan=False)
    same = asked(context, "what color is the shape?", setting=ALIKE)["thread"][0]
    assert not same["shown"]["parted"] and same["left"] == same["right"]


def test_short_answers_tell_how_sure_each_side_is(context: PageContext, monkeypatch):
    monkeypatch.setattr(ask_words, "_is_short", lambda answer: answer.state == "done")
    turn = asked(context, "what color is the shape?")["thread"][0]
    for side in turn["shown"]["sides"]:
        shares = [share for _, share in side["bars"]]
        assert len(shares) == 4 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1


def test_two_answers_without_a_word_are_said_to_say_nothing():
    silent = Answer(state="done", tokens=1, candidates=(("", 0.75),))
    sides = [PrecisionPlan.full(), PrecisionPlan.uniform(4)]
    assert ask_words._compared(sides, Frame((silent, silent), same=1)) == "Both say nothing."


def test_the_picture_and_equal_prompts_are_prepared_once(context: PageContext, monkeypatch):
    elastic, calls = context.service.models[MODEL], []
    counted = {"prompt": (visual, "prompt_ids"), "picture": (type(elastic.processor), "__call__")}
    for name, (owner, function) in counted.items():
        work = getattr(owner, function)
        monkeypatch.setattr(
            owner, function, lambda *a, n=name, work=work, **kw: calls.append(n) or work(*a, **kw)
        )
    thread = asked(context, "what shape is present?")["thread"]
    assert sorted(calls) == ["picture", "prompt"]
    calls.clear()
    asked(context, "what colour is it?", thread)
    assert calls.count("picture") == 1 and calls.count("prompt") <= 2


def test_a_follow_up_continues_and_another_picture_begins_anew(context: PageContext, monkeypatch):
    told = []
    real = ask_answers.chat
    monkeypatch.setattr(
        ask_answers, "chat", lambda *a, **k: told.append((a[2], k["pictures"])) or real(*a, **k)
    )
    thread = asked(context, "what shape is present?")["thread"]
    thread = asked(context, "what color is the shape?", thread)["thread"]
    histories, pictures = told[-1]
    assert [message["role"] for message in histories[1]] == ["user", "assistant", "user"]
    assert (
        histories[1][1]["content"] == thread[0]["right"] and histories[0][1]["content"] == thread[0]["left"]
    )
    assert thread[1]["shown"]["source"] == thread[0]["shown"]["source"] and len(pictures) == 1
    drawing = {"png": png(shape("rectangle", "blue"))}
    thread = asked(context, "is there a circle?", thread, drawing)["thread"]
    assert len(told[-1][0][0]) == 1 and thread[2]["scene"].startswith("drawn:")
    assert told[-1][1][0].tobytes() == shape("rectangle", "blue").tobytes()
    assert [turn["question"] for turn in thread][-1] == "is there a circle?"
    page = {}
    for change in again(context, ALIKE, thread, "a"):
        page |= change
    assert [turn["scene"] for turn in page["thread"]] == [turn["scene"] for turn in thread]
    assert page["thread"][-1]["shown"]["sides"][0]["label"].startswith("W8 (every layer at 8 bits")


@pytest.mark.parametrize(
    ("picture", "question", "words"),
    [
        (None, "what is it?", "no picture"),
        ({"id": "example:0"}, "   ", "Type a question"),
        ({"id": "example:0"}, "<image>", "control tokens"),
        ({"id": "example:0"}, "x" * 1001, "1,001 characters"),
        ({"id": "example:0"}, "x" * 900, "fit"),
        ({"id": "example:7"}, "what?", "not here any more"),
        ({"id": "own:0"}, "what?", "not here any more"),
        ({"png": b"no png"}, "what?", "no picture that can be read"),
        ({"png": png(shape())[:60]}, "what?", "damaged|cut short|read"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(context: PageContext, said, picture, question, words):
    old = asked(context, "what shape is present?")["thread"]
    page = {"thread": old}
    for change in send(context, APART, old, picture, question, "a"):
        page |= change
    assert page["thread"] == old
    assert said and re.search(words, said[-1])


@pytest.mark.parametrize(
    "payload",
    [
        None,
        "x",
        [],
        {},
        {"id": 3},
        {"png": "data:text/html;base64,AAAA"},
        {"png": "data:image/png;base64,?"},
        {"png": "data:image/png;base64," + "A" * 2_000_001},
    ],
)
def test_whatever_else_the_browser_sends_is_no_picture(payload):
    assert picture_of(payload) is None


def test_a_drawing_travels_as_png():
    drawing = png(shape())
    sent = "data:image/png;base64," + base64.b64encode(drawing).decode()
    assert picture_of({"png": sent}) == {"png": drawing}
    assert picture_of({"id": "example:0", "more": 1}) == {"id": "example:0"}


def test_an_unknown_precision_is_refused(context: PageContext, said):
    page = asked(context, "what?", setting=Setting(MODEL, ("W8", "nonsense")))
    assert page["thread"] == [] and "nonsense" in said[-1]
    assert statuses(context, Setting(MODEL, ("W8", "nonsense")))["status_right"]["state"] == "error"


def test_the_equaliser_answers_at_the_plan_it_has(context: PageContext, elastic: ElasticModel):
    plan_json = context.service.plan_json_of(MODEL, PrecisionPlan.uniform(2))
    setting = Setting(MODEL, ("equaliser", "W2"), plan_json)
    facts = statuses(context, setting)
    first = statuses(context, Setting(MODEL, ("equaliser", "W2")))
    assert facts["status_left"]["facts"][0][1] != first["status_left"]["facts"][0][1]
    turn = asked(context, "what?", setting=setting)["thread"][0]
    assert turn["shown"]["sides"][0]["label"].startswith("your plan")


def test_a_newer_question_ends_the_older(context: PageContext):
    older = send(context, APART, [], {"id": "example:0"}, "what shape is present?", "a")
    next(older)
    asked(context, "what color is the shape?")
    assert list(older) in ([{}], [{}, {}]), "the page belongs to the newer one"


def test_what_was_cleared_does_not_come_back(context: PageContext):
    running = send(context, APART, [], {"id": "example:0"}, "what shape is present?", "a")
    next(running)
    assert clear(context, APART, "a")["thread"] == []
    assert list(running) in ([{}], [{}, {}])


def test_a_typed_token_is_mentioned(context: PageContext):
    turn = asked(context, "what is <image> here?")["thread"][0]
    assert turn["shown"]["note"].startswith("<image> is not read as a token")


def test_visitors_never_see_each_others_pictures(context: PageContext, said, tmp_path: Path):
    path = tmp_path / "upload" / "own.png"
    path.parent.mkdir()
    path.write_bytes(png(shape("circle", "blue", size=2000)))
    first, *_ = given(context, MODEL, str(path), "a")
    own = first["easel"]["selected"]
    assert first["input"] is None and first["easel"]["items"][0]["id"] == own and not path.exists()
    assert max(context.album.of("a", MODEL)[0].picture.size) <= 1024
    assert own not in json.dumps(easel(context, MODEL, "b"))
    assert asked(context, "what?", picture={"id": own}, visitor="b")["thread"] == [] and said
    results = {}
    visit = lambda who: results.update({who: asked(context, f"is it {who}?", visitor=who)["thread"]})  # noqa: E731
    threads = [threading.Thread(target=visit, args=(who,)) for who in "abc"]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert {who: [t["question"] for t in thread] for who, thread in results.items()} == {
        who: [f"is it {who}?"] for who in "abc"
    }
    context.forget("a")
    assert context.album.of("a", MODEL) == [] and len(context.pool) == 4, "two sides each of b and c"


def test_a_broken_upload_leaves_the_easel_as_it_is(context: PageContext, said, tmp_path: Path):
    path = tmp_path / "upload" / "drawing.svg"
    path.parent.mkdir()
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    first, *_ = given(context, MODEL, str(path), "a")
    assert first == {"input": None} and "no picture that can be read" in said[-1] and not path.exists()


def test_pictures_and_drawings_are_read_and_prepared_in_a_turn_at_the_gate(context, tmp_path, monkeypatch):
    gate, held = threading.Lock(), []
    context.service.gate = gate
    for module, name in ((ask_answers, "read_upload"), (ask_answers, "read_sent"), (conversation, "prepare")):
        work = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, work=work: (held.append(gate.locked()), work(*given))[1]
        )
    (tmp_path / "x").mkdir()
    shape().save(tmp_path / "x" / "a.png")
    list(given(context, MODEL, str(tmp_path / "x" / "a.png"), "a"))
    list(send(context, ALIKE, [], {"png": png(shape())}, "what shape is present?", "a"))
    assert len(held) >= 3 and all(held) and not gate.locked()


def test_a_strip_is_refused_when_it_is_given(context: PageContext, said, tmp_path: Path):
    (tmp_path / "x").mkdir()
    Image.new("RGB", (20_000, 1)).save(tmp_path / "x" / "a.png")
    assert all("easel" not in change for change in given(context, MODEL, str(tmp_path / "x" / "a.png"), "a"))
    assert "narrow strip" in said[0]


def test_the_page_opens_with_what_its_address_says(context: PageContext):
    query = {"p": "ask", "ask": MODEL, "l": "W3", "r": "nonsense"}
    page = enter(context, query, APART, [], "a")
    assert (page["plan_left"].value, page["plan_right"].value) == ("W3", "equaliser")
    assert page["easel"]["items"] and "talk" in page and "W3" in page["status_left"]["words"]
    for query in (None, {"p": "chat", "l": "W3"}):
        assert enter(context, query, APART, [], "a")["plan_left"].value == "full precision"
    assert switched(context, ALIKE, "a")["thread"] == [] == clear(context, ALIKE, "a")["thread"]


def test_examples_bring_their_questions_and_a_plain_model_has_general_ones(
    context: PageContext, elastic: ElasticModel
):
    shown = easel(context, MODEL)
    assert [item["id"] for item in shown["items"]] == ["example:0", "example:1"]
    assert "is there a circle?" in shown["items"][0]["questions"] and len(shown["colours"]) == 8
    bare = PageContext(context.service, {MODEL: Gallery(elastic, None)})
    assert easel(bare, MODEL)["items"] == [] and "picture?" in easel(bare, MODEL)["questions"][0]


@pytest.mark.parametrize(
    ("question", "picture", "words"),
    [
        ("what colour is the shape?", shape(), None),
        ("Is there a grey circle in the image?", shape("rectangle", "gray"), None),
        ("is there a dog?", shape(), "“dog”"),
        ("red circle", shape(), "such words"),
        ("is there a circle?", shape(ground="#203040"), "backgrounds"),
        ("is there a circle?", Image.new("RGB", (64, 64), "white"), "a shape in them"),
        ("is there a circle?", shape(colour="#ff00ff"), "yellow"),
    ],
)
def test_what_lies_outside_of_its_world_is_said(question, picture, words):
    note = EASY_VQA.outside(question, picture, script("easy-vqa").processor().tokenizer)
    assert note is None if words is None else words in note and note.endswith("a guess.")


def test_two_colours_are_not_one_shape():
    picture = shape()
    picture.paste(PAINTS["blue"], (40, 40, 60, 60))
    assert "one shape" in EASY_VQA.outside(
        "is there a circle?", picture, script("easy-vqa").processor().tokenizer
    )


def test_a_page_drawn_before_its_model_is_chosen_paints_in_every_colour(context: PageContext):
    with gr.Blocks():
        page = ask.build(PageContext(context.service, {}, bench=bench("language"), tab=gr.Tab()))
    assert len(page.easel.value["colours"]) == 8


def test_what_a_link_says_stays_whichever_of_its_events_comes_first(context, elastic):
    with gr.Blocks():
        bare = bench(MODEL)
        page = ask.build(PageContext(context.service, context.held, bench=bare, tab=gr.Tab()))
        events = {fn.name: fn.fn for fn in gr.context.Context.root_block.fns.values() if fn.name}
    link, stale = {"p": "ask", "m": MODEL, "l": "W3", "r": "W8"}, (MODEL, *ask.STARTING, None)
    request = SimpleNamespace(session_hash="a")
    change = events["on_switch"](request, link, None, *stale)
    later = events["on_enter"](request, link, change[page.entered], [], *stale)
    assert [later[menu].value for menu in (page.plan_left, page.plan_right)] == ["W3", "W8"]
    change = events["on_enter"](request, link, None, [], *stale)
    later = events["on_switch"](request, link, change[page.entered], *stale)
    assert later[page.plan_left].value == "W3"
    overtaken = events["on_enter"](request, link, change[page.entered], [], "language", *stale[1:])
    for one in (later, overtaken):  # skipped, a menu that is not drawn yet would forget what it offers
        assert one[page.plan_left].props["choices"] == [list(pair) for pair in context.service.choices(MODEL)]
    chosen = events["on_choice"](MODEL, "W2", "W8", None)
    later = events["on_enter"](request, link, chosen[page.entered], [], *stale)
    assert later[page.plan_left].value == "W2"
