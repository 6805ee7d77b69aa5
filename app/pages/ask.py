"""The Ask page: questions about a picture, answered at two precisions side by side, and how sure each is.

`build` draws and wires. The handlers above it are plain functions and generators: they take a
`PageContext` (what all visitors share) and values, and give or yield a change of the page, `{component name:
new value}`, names as in `AskPage`. The thread in the visitor's state is a list of turns, `{"scene": id of the
picture, "question", "left": answer, "right": answer, "shown": the turn as Talk shows it}`. Turns about one
picture in a row are one conversation; another picture begins a new one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from itertools import takewhile

import gradio as gr

from app import own
from app.budget import sentence
from app.components.budget import request_of
from app.components.chart import Chart
from app.components.easel import Easel, picture_of
from app.components.menu import Menu
from app.components.picture_input import PictureInput
from app.components.side_status import SideStatus
from app.components.talk import Talk
from app.conversation import Answer, Frame, chat
from app.link import ASK
from app.pages.chat_status import SIDES, piece, ready, refused, reported
from app.pages.context import EVERY, LIGHT, WARNING, Page, PageContext, buttons, precision_menu
from app.pictures import read_sent, read_upload, remove_upload
from app.scenes import PAINTS, Gallery, Scene
from app.service import PlanJson, Service
from app.side import EQUALIZER, side_of
from app.toast import shown, warn
from quept.evaluate import ImageError
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from quept.runtime.generate import Sampling, context_length

logger = logging.getLogger(__name__)

STARTING = ("full precision", EQUALIZER)
INPUT = "ask-picture"
LONGEST_QUESTION = 1000  # characters
LONGEST_ANSWER = 128  # tokens, where the context has room for them
SHORT = 4  # tokens of an answer whose probabilities are shown
CANDIDATES = 4
TURNS_KEPT = 24
ASKING = 16  # visitors whose page shows a place in line; further ones wait in Gradio's own queue
FETCH_S = 1.0  # in which a browser has fetched the picture that it has just sent
TAKEN = "JPEG, PNG, WebP, GIF, BMP and TIFF files of up to 10 MB are taken."
NO_PICTURE = "There is no picture to ask about yet: choose or give one, or draw something."
NO_QUESTION = "Type a question about the picture, or choose one of the suggestions."
FAILED = "The answer failed for a reason of its own, not yours. Your question was kept: try again"
EMPTY = [
    "Choose a picture or draw one, then ask about it.",
    "Both precisions read the same picture and the same words; what differs between their answers is marked, "
    "and short answers tell how sure each of them is.",
]
# What the page shows is part of its address; the plan and the model are too.
ADDRESS_JS = """(left, right) => {
  const url = new URL(location.href);
  if (url.searchParams.get("p") !== "ask") return;
  const shown = { l: left, r: right };
  for (const [name, value] of Object.entries(shown)) url.searchParams.set(name, value);
  history.replaceState(history.state, "", url.href);
}"""


@dataclass(frozen=True)
class Setting:
    """The page as it is: the model, the choices of both sides, and the plan on the workbench."""

    model: str
    choices: tuple[str, str]
    plan_json: PlanJson | None = None

    def side(self, service: Service, choice: str) -> PrecisionPlan:
        return side_of(service.plan, self.model, choice, self.plan_json)


# Handlers


def send(
    desk: PageContext, setting: Setting, thread: list[dict], picture: dict | None, question: str, visitor: str
) -> Iterator[dict]:
    """A new question about the picture on the easel. The question is given back if there was no answer."""
    question = (question or "").strip()
    if picture is None or not question:
        warn(NO_QUESTION if picture else NO_PICTURE, title="Nothing to ask yet")
        yield {}
        return
    try:
        scene = _scene(desk, setting.model, picture, visitor)
    except ImageError as error:
        _refuse(error)
        yield {}
        return
    yield from _answer(desk, setting, thread, scene, question, visitor, old=thread, returned=question)


def again(desk: PageContext, setting: Setting, thread: list[dict], visitor: str) -> Iterator[dict]:
    """The last question once more, at the precisions of now."""
    if not thread:
        warn("There is no question to repeat yet: ask one first.", title="Nothing to ask yet")
        yield {}
        return
    last = thread[-1]
    try:
        scene = _known(desk, setting.model, last["scene"], visitor)
    except ImageError as error:
        _refuse(error)
        yield {}
        return
    yield from _answer(desk, setting, thread[:-1], scene, last["question"], visitor, old=thread)


def stop(desk: PageContext, visitor: str) -> None:
    """End the visitor's answer after the step it is in; does nothing when there is none."""
    desk.running.stop(visitor)


def clear(desk: PageContext, setting: Setting, visitor: str) -> dict:
    """No questions, and nothing kept of the old ones but the visitor's pictures."""
    desk.running.end(visitor, desk.running.begin(visitor))  # an answer under way no longer owns the page
    desk.pool.forget(visitor)
    nothing = {"chart": Chart(own=[])}
    return _drawn([]) | buttons(running=False) | statuses(desk, setting) | nothing


def given(desk: PageContext, model: str, path: str | None, visitor: str) -> Iterator[dict]:
    """A picture from the visitor: it goes on the easel, and the input is empty again; then its file goes. Not
    at once: the browser may just be fetching it, to show it for the moment that it takes to read it."""
    if not path:
        yield {}
        return
    try:
        yield {"input": None} | _taken(desk, model, path, visitor)
        time.sleep(FETCH_S)
    finally:
        remove_upload(path)


def _taken(desk: PageContext, model: str, path: str, visitor: str) -> dict:
    try:
        with desk.service.gate:
            scene = desk.held[model].own(read_upload(path, 3))
    except ImageError as error:
        warn(f"{sentence(error)} {TAKEN}", title="Picture not taken")
        return {}
    except Exception:
        logger.exception("a picture could not be prepared")
        warn("This picture could not be prepared. Try another one.", title="Picture not taken")
        return {}
    desk.album.add(visitor, model, scene)
    return {"easel": easel(desk, model, visitor, scene.id)}


def switched(desk: PageContext, setting: Setting, visitor: str) -> dict:
    """Another of the operator's models: its precisions and pictures, and no questions yet."""
    drawn = {"easel": easel(desk, setting.model, visitor), "title": _title(desk, setting.model)}
    return clear(desk, setting, visitor) | drawn | _menus(desk.service, setting)


def enter(
    desk: PageContext, query: Mapping | None, setting: Setting, thread: list[dict], visitor: str
) -> dict:
    """The page is opened: with what its address says, the first time (`query`, else None). All components
    get a value: see SideStatus for what skipping would do to those not drawn yet."""
    if setting.model not in desk.held:
        return {}
    linked = bool(query) and query.get("p") == ASK
    values = [value for _, value in desk.service.choices(setting.model)]
    asked = (query.get("l"), query.get("r")) if linked else setting.choices
    kept = [a if a in values else b for a, b in zip(asked, STARTING, strict=True)]
    new = Setting(setting.model, tuple(kept), setting.plan_json)
    drawn = {"easel": easel(desk, new.model, visitor), "title": _title(desk, new.model), "entered": True}
    return drawn | _drawn(thread) | _menus(desk.service, new) | statuses(desk, new)


def statuses(desk: PageContext, setting: Setting) -> dict:
    """What each side is set to."""
    elastic, change = desk.service.models[setting.model], {}
    for name, choice in zip(SIDES, setting.choices, strict=True):
        try:
            side = setting.side(desk.service, choice)
            change[f"status_{name}"] = ready(side, elastic.sizes.deploy(side)) | {
                "line": _memory(side, elastic)
            }
        except (ValueError, KeyError) as error:
            change[f"status_{name}"] = refused(error)
    return change


def _answer(
    desk: PageContext,
    setting: Setting,
    before: list[dict],
    scene: Scene,
    question: str,
    visitor: str,
    old: list[dict],
    returned: str | None = None,
) -> Iterator[dict]:
    """Both answers to the question behind the turns of `before`. Without any at the end the page goes back to
    `old` and gives `returned` back."""
    elastic = desk.service.models[setting.model]
    world = desk.held[setting.model].world
    try:
        if len(question) > LONGEST_QUESTION:
            raise ValueError(
                f"this question has {len(question):,} characters; at most {LONGEST_QUESTION:,} are read: "
                "shorten it"
            )
        sides = [setting.side(desk.service, choice) for choice in setting.choices]
    except (ValueError, KeyError) as error:
        _refuse(error)
        yield _drawn(old)
        return
    notes = [_letters(question, elastic)]
    if world:
        notes.append(world.outside(question, scene.picture, elastic.tokenizer))
    same = list(takewhile(lambda turn: turn["scene"] == scene.id, reversed(before)))[::-1]
    job = desk.running.begin(visitor)
    context = context_length(elastic, elastic.tokenizer)
    frames = chat(
        elastic,
        sides,
        [_messages(same, question, side) for side in SIDES],
        Sampling(temperature=0, max_tokens=min(LONGEST_ANSWER, (context or 4 * LONGEST_ANSWER) // 4)),
        "",
        desk.service.gate,
        desk.service.admission,
        stopped=job.is_set,
        pool=desk.pool,
        visitor=visitor,
        pictures=[scene.picture],
        candidates=CANDIDATES,
    )
    frame, thread, problem = None, old, None
    try:
        with closing(frames):
            for frame in frames:
                if not desk.running.is_newest(visitor, job):
                    yield {}  # the visitor has asked something else, which now owns the page
                    return
                shown = _turn(sides, frame, question, scene.answers.get(question.lower()))
                shown |= {"note": " ".join(filter(None, notes)), "source": scene.thumbnail}
                turn = {"scene": scene.id, "question": question, "shown": shown}
                turn |= {name: answer.text for name, answer in zip(SIDES, frame.answers, strict=True)}
                begun = _busy(cleared=returned is not None) if thread is old else {}
                thread = [*before, turn][-TURNS_KEPT:]
                yield {"talk": _talk(thread)} | _reported(sides, frame, elastic) | begun
    except ValueError as error:  # a question, or a plan, that the model cannot be given
        problem = error
    except Exception:
        logger.exception("a question about a picture failed")
        problem = FAILED
    finally:
        newest = desk.running.is_newest(visitor, job)
        desk.running.end(visitor, job)
    if not newest:
        yield {}
        return
    shown = _reported(sides, frame, elastic) if frame else {}
    if frame and any(answer.text or answer.state == "done" for answer in frame.answers):
        pairs = list(zip(SIDES, sides, frame.answers, strict=True))
        thread[-1]["scored"] = {name: own.scored(elastic, side, a) for name, side, a in pairs}
        for name, side, _ in pairs:
            key = side.key(elastic.layers)
            shown[f"status_{name}"]["own"] = own.figure(thread, key, "questions")
        chart = {"chart": Chart(own=own.points(thread, "questions"))}
        yield _drawn(thread) | shown | buttons(running=False) | chart
        return
    problem = problem or (frame and next((a.error for a in frame.answers if a.state == "error"), None))
    if problem:
        _refuse(problem)
    yield _drawn(old) | shown | buttons(running=False) | ({} if returned is None else {"question": returned})


def _scene(desk: PageContext, model: str, picture: Mapping, visitor: str) -> Scene:
    """The picture that the easel means; ImageError with a sentence where there is none."""
    if "id" in picture:
        return _known(desk, model, picture["id"], visitor)
    with desk.service.gate:
        scene = desk.held[model].drawn(read_sent(picture["png"], 3))
    if all(other.id != scene.id for other in desk.album.of(visitor, model)):
        desk.album.add(visitor, model, scene)
    return scene


def _known(desk: PageContext, model: str, identity: str, visitor: str) -> Scene:
    """An example, or one of the visitor's own."""
    scenes = {scene.id: scene for scene in desk.album.of(visitor, model)} | desk.held[model].examples
    if identity not in scenes:
        raise ImageError("this picture is not here any more: choose another one")
    return scenes[identity]


def _messages(turns: Sequence[Mapping], question: str, side: str) -> list[dict]:
    """One side's conversation about one picture, which comes with the first question."""
    texts = [text for turn in turns for text in (turn["question"], turn[side])] + [question]
    first = [{"type": "image"}, {"type": "text", "text": texts[0]}]
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text if i else first} for i, text in enumerate(texts)]


def _letters(question: str, elastic: ElasticModel) -> str | None:
    """What happens to a token of the model's own that was typed."""
    own = filter(str.strip, elastic.tokenizer.get_added_vocab())
    typed = next((token for token in own if token in question), None)
    return typed and f"{typed} is not read as a token: the picture comes by itself."


def _refuse(error: object) -> None:
    """A sentence in the page. Gradio shows it as HTML, and it may quote what the visitor typed."""
    warn(sentence(error), title="Not asked")


# What the page shows


def easel(desk: PageContext, model: str, visitor: str = "", selected: str | None = None) -> dict:
    """The visitor's own pictures and the examples, as Easel shows them."""
    gallery = desk.held[model]
    own = [scene for scene in desk.album.of(visitor, model) if scene.id.startswith("own:")]
    return {
        "items": [
            {"id": scene.id, "name": scene.name, "source": scene.source, "questions": scene.questions}
            for scene in (*own, *gallery.examples.values())
        ],
        "selected": selected,
        "questions": gallery.suggestions,
        "colours": [[name, "#{:02x}{:02x}{:02x}".format(*rgb)] for name, rgb in PAINTS.items()],
        "empty": "Drop a picture below, paste one, use the camera, or draw.",
        "paste_into": INPUT,
    }


def _drawn(thread: list[dict]) -> dict:
    return {"thread": thread, "talk": _talk(thread)}


def _talk(thread: list[dict]) -> dict:
    return {"turns": [turn["shown"] for turn in thread], "empty": EMPTY}


def _turn(sides: Sequence[PrecisionPlan], frame: Frame, question: str, known: str | None) -> dict:
    """One question as Talk shows it."""
    shown = []
    for i, (side, answer) in enumerate(zip(sides, frame.answers, strict=True)):
        one = {"label": side.name, "state": answer.state, "text": _marked(frame, i), "right": None}
        if answer.state == "done" and known:
            one["right"] = answer.text.strip().lower() == known
        if _is_short(answer):
            one["bars"] = [[text.strip() or "(the end)", share] for text, share in answer.candidates]
            one["caption"] = "How sure it is" if _is_word(answer) else "How sure it is of the first token"
        shown.append(one)
    line = _compared(sides, frame)
    return {"question": question, "sides": shown, "line": line, "parted": frame.parting is not None}


def _marked(frame: Frame, i: int) -> tuple[str, str, str]:
    """The answer: what comes before the first token that differs, that, and what comes behind it."""
    answer, parting = frame.answers[i], frame.parting
    if answer.state == "error" or not parting or parting.pieces[i] is None:
        return answer.error or answer.text, "", ""
    start = parting.starts[i]
    end = start + max(1, len(parting.pieces[i]))  # of half a character the whole one
    return answer.text[:start], answer.text[start:end], answer.text[end:]


def _is_short(answer: Answer) -> bool:
    """Whether all of it was written, in so few tokens, the end token left out."""
    return answer.state == "done" and not answer.cut and answer.tokens <= SHORT + 1


def _is_word(answer: Answer) -> bool:
    return _is_short(answer) and answer.tokens == 2


def _compared(sides: Sequence[PrecisionPlan], frame: Frame) -> str:
    """How the answers compare, once both are whole; before that only where they part."""
    left, right = frame.answers
    one, other = (side.name for side in sides)
    parting = frame.parting
    if _is_short(left) and _is_short(right):
        if parting:
            return f"The answers differ: {_said(left)} at {one}, {_said(right)} at {other}."
        sure = f": {_percent(left)} sure at {one}, {_percent(right)} at {other}" if _is_word(left) else ""
        return f"Both say {_quoted(left)}{sure}."
    if parting:
        here, there = map(piece, parting.pieces)
        return f"The answers part at token {parting.index + 1}: {here} at {one}, {there} at {other}."
    if left.state == right.state == "done":
        return f"Both wrote the same {frame.same:,} tokens."
    return ""


def _said(answer: Answer) -> str:
    return _quoted(answer) + (f" ({_percent(answer)} sure)" if _is_word(answer) else "")


def _quoted(answer: Answer) -> str:
    return f"“{answer.text.strip()}”" if answer.text.strip() else "nothing"


def _percent(answer: Answer) -> str:
    share = 100 * answer.candidates[0][1]
    return f"{share:.0f} %" if share < 99 else f"{min(share, 99.99):.2f} %"


def _reported(sides: Sequence[PrecisionPlan], frame: Frame, elastic: ElasticModel) -> dict:
    """The statuses while the sides answer; how they compare stands below the answers."""
    statuses = reported(sides, frame)
    for name, side in zip(SIDES, sides, strict=True):
        status = statuses[f"status_{name}"]
        status |= {"line": _memory(side, elastic), "parted": False, "mark": None}
    return statuses


def _memory(side: PrecisionPlan, elastic: ElasticModel) -> str:
    share = elastic.sizes.deploy(side) / elastic.sizes.deploy(PrecisionPlan.full())
    return "The full size" if share == 1 else f"{100 * share:.0f} % of the full size"


def _menus(service: Service, setting: Setting) -> dict:
    offered = service.choices(setting.model)
    pairs = zip(SIDES, setting.choices, strict=True)
    return {f"plan_{side}": precision_menu(ASK, side, offered, choice) for side, choice in pairs}


def _busy(cleared: bool) -> dict:
    return buttons(running=True) | ({"question": ""} if cleared else {})


def _title(desk: PageContext, model: str) -> str:
    world = desk.held[model].world
    about = world.words if world else "Ask about a picture at two precisions."
    return f"**{shown(desk.service.models[model].title)}** · {about}"


# The page


@dataclass
class AskPage:
    """The page's components by the names that changes use."""

    title: gr.Markdown
    easel: Easel
    input: PictureInput
    question: gr.Textbox
    send: gr.Button
    stop: gr.Button
    again: gr.Button
    clear: gr.Button
    plan_left: Menu
    plan_right: Menu
    status_left: SideStatus
    status_right: SideStatus
    talk: Talk
    thread: gr.State
    entered: gr.State


def build(desk: PageContext) -> AskPage:
    """Draw the page and wire it."""
    service = desk.service
    start = Setting(desk.first, STARTING, desk.plan.value if desk.first == desk.model.value else None)
    offered = service.choices(start.model)
    shown = statuses(desk, start)
    drawn = {"thread": gr.State([]), "entered": gr.State(False)}
    with gr.Column(elem_id=ASK):
        with gr.Row(elem_id="ask-head"):
            drawn["title"] = gr.Markdown(_title(desk, start.model), elem_id="ask-title")
        with gr.Row(elem_id="ask-middle", equal_height=False):
            with gr.Column(min_width=300, elem_id="ask-pictures"):
                begins = desk.model.value in desk.held  # else its pictures come with `enter`
                drawn["easel"] = Easel(easel(desk, start.model) if begins else None, elem_id="ask-easel")
                drawn["input"] = PictureInput(
                    sources=["upload", "webcam", "clipboard"],
                    label="Your picture",
                    show_label=False,
                    height=132,
                    placeholder="Your own picture:\ndrop, paste or click",
                    buttons=[],
                    elem_id=INPUT,
                )
            with gr.Column(min_width=320, elem_id="ask-answers"):
                with gr.Row(elem_id="ask-ask", equal_height=False):
                    drawn["question"] = gr.Textbox(
                        label="Question about the picture",
                        show_label=False,
                        placeholder="Ask about the picture",
                        lines=1,
                        max_lines=4,
                        scale=1,
                        min_width=160,
                        container=False,
                        elem_id="ask-question",
                    )
                    drawn["send"] = _button("Ask", "send", variant="primary")
                    drawn["stop"] = _button("Stop", "stop", variant="stop", visible=False)
                    drawn["again"] = _button("Ask again", "again")
                    drawn["clear"] = _button("Clear", "clear")
                with gr.Row(elem_id="ask-sides", equal_height=False):
                    for side, choice in zip(SIDES, start.choices, strict=True):
                        with gr.Column(min_width=240, elem_classes="ask-side"):
                            drawn[f"plan_{side}"] = precision_menu(ASK, side, offered, choice)
                            drawn[f"status_{side}"] = SideStatus(
                                shown[f"status_{side}"], elem_id=f"ask-status-{side}"
                            )
                drawn["talk"] = Talk(_talk([]), elem_id="ask-talk")
    page = AskPage(**drawn)
    _wire(desk, page)
    return page


def _button(words: str, name: str, **options) -> gr.Button:
    return gr.Button(words, scale=0, min_width=60 + 8 * len(words), elem_id=f"ask-{name}", **options)


def _wire(desk: PageContext, page: AskPage) -> None:
    parts = {f.name: getattr(page, f.name) for f in fields(page)} | {"chart": desk.chart}
    outputs = [part for name, part in parts.items() if name != "clear"]
    both = [page.status_left, page.status_right]
    buttons = [page.send, page.stop, page.again]
    answers = [page.talk, page.thread, page.question, *both, *buttons, desk.chart]  # few: they change often
    setting = [desk.model, page.plan_left, page.plan_right, desk.plan]
    running = EVERY | {"queue": True, "concurrency_id": ASK, "concurrency_limit": ASKING}

    def on_page(change: dict) -> dict:
        return {parts[name]: value for name, value in change.items()} or gr.skip()

    def now(values: tuple) -> Setting:
        model, left, right, plan_json = values
        return Setting(model, (left, right), plan_json)

    def on_send(request: gr.Request, thread, picture, question, *values):
        for change in send(desk, now(values), thread, picture, question, request.session_hash):
            yield on_page(change)

    def on_suggestion(request: gr.Request, event: gr.EventData, thread, *values):
        asked = request_of(event)
        question, picture = str(asked.get("question")), picture_of(asked.get("picture"))
        for change in send(desk, now(values), thread, picture, question, request.session_hash):
            yield on_page({name: value for name, value in change.items() if name != "question"})

    def on_again(request: gr.Request, thread, *values):
        for change in again(desk, now(values), thread, request.session_hash):
            yield on_page(change)

    def on_given(request: gr.Request, model, path):
        for change in given(desk, model, path, request.session_hash):
            yield on_page(change)

    def on_stop(request: gr.Request):
        stop(desk, request.session_hash)

    def on_clear(request: gr.Request, *values):
        return on_page(clear(desk, now(values), request.session_hash))

    def on_switch(request: gr.Request, query, entered, *values):
        setting, visitor = now(values), request.session_hash
        if setting.model not in desk.held:
            return gr.skip()
        change = switched(desk, setting, visitor)
        return on_page(change if entered else change | enter(desk, query, setting, [], visitor))

    def on_plan(*values):
        return on_page(statuses(desk, now(values)) if values[0] in desk.held else {})

    def on_enter(request: gr.Request, query, entered, thread, *values):
        query = None if entered else query
        return on_page(enter(desk, query, now(values), thread, request.session_hash))

    def on_leave(request: gr.Request):
        desk.forget(request.session_hash)

    def address(event) -> None:
        event.then(None, setting[1:3], None, js=ADDRESS_JS, show_progress="hidden", api_visibility="private")

    asked = [page.thread, page.easel, page.question, *setting]
    gr.on([page.send.click, page.question.submit], on_send, asked, answers, **running)
    page.easel.ask(on_suggestion, [page.thread, *setting], answers, **running)
    page.again.click(on_again, [page.thread, *setting], answers, **running)
    page.stop.click(on_stop, None, None, **LIGHT)
    page.clear.click(on_clear, setting, answers, **LIGHT)
    page.input.upload(on_given, [desk.model, page.input], [page.input, page.easel], **EVERY | WARNING)
    address(gr.on([page.plan_left.input, page.plan_right.input], on_plan, setting, both, **LIGHT))
    desk.on_model(on_switch, [desk.query, page.entered, *setting], outputs, **LIGHT)
    desk.on_plan(on_plan, setting, both, **LIGHT)
    entering = [desk.query, page.entered, page.thread, *setting]
    address(desk.tab.select(on_enter, entering, outputs, **LIGHT))
    gr.context.Context.root_block.unload(on_leave)


PAGE = Page(
    ASK,
    "Ask",
    build,
    kinds=("vision-language",),
    holds=lambda opened: Gallery.of(opened.elastic),
)
