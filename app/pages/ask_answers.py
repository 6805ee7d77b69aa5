"""What the Ask page does with a question about a picture: two answers at two precisions.

Plain functions and generators: they take a `PageContext` (what all visitors share) and values, and give or
yield a change of the page, `{component name: new value}`, names as in `app.pages.ask.AskPage`. The thread in
the visitor's state is a list of turns, `{"scene": id of the picture, "question", "left": answer, "right":
answer, "shown": the turn as Talk shows it}`. Turns about one picture in a row are one conversation; another
picture begins a new one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile

from app import own
from app.budget import sentence
from app.components.chart import Chart
from app.conversation import Frame, chat
from app.link import ASK
from app.pages.ask_words import CANDIDATES, turn_shown
from app.pages.chat_status import SIDES, ready, refused, reported
from app.pages.context import PageContext, buttons, precision_menu
from app.pictures import read_sent, read_upload, remove_upload
from app.scenes import PAINTS, Scene
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
TURNS_KEPT = 24
FETCH_S = 1.0  # in which a browser has fetched the picture that it has just sent
TAKEN = "JPEG, PNG, WebP, GIF, BMP and TIFF files of up to 10 MB are taken."
NO_PICTURE = "There is no picture to ask about yet: choose or give one, or draw something."
NO_QUESTION = "Type a question about the picture, or choose one of the suggestions."
FAILED = "The answer failed for a reason of its own, not yours. Your question was kept: try again"
PALETTE = [[name, "#{:02x}{:02x}{:02x}".format(*rgb)] for name, rgb in PAINTS.items()]
EMPTY = [
    "Choose a picture or draw one, then ask about it.",
    "Both precisions read the same picture and the same words; what differs between their answers is marked, "
    "and short answers tell how sure each of them is.",
]


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
    context: PageContext,
    setting: Setting,
    thread: list[dict],
    picture: dict | None,
    question: str,
    visitor: str,
) -> Iterator[dict]:
    """A new question about the picture on the easel. The question is given back if there was no answer."""
    question = (question or "").strip()
    if picture is None or not question:
        warn(NO_QUESTION if picture else NO_PICTURE, title="Nothing to ask yet")
        yield {}
        return
    try:
        scene = _scene(context, setting.model, picture, visitor)
    except ImageError as error:
        _refuse(error)
        yield {}
        return
    yield from _answer(context, setting, thread, scene, question, visitor, old=thread, returned=question)


def again(context: PageContext, setting: Setting, thread: list[dict], visitor: str) -> Iterator[dict]:
    """The last question once more, at the precisions of now."""
    if not thread:
        warn("There is no question to repeat yet: ask one first.", title="Nothing to ask yet")
        yield {}
        return
    last = thread[-1]
    try:
        scene = _known(context, setting.model, last["scene"], visitor)
    except ImageError as error:
        _refuse(error)
        yield {}
        return
    yield from _answer(context, setting, thread[:-1], scene, last["question"], visitor, old=thread)


def stop(context: PageContext, visitor: str) -> None:
    """End the visitor's answer after the step it is in; does nothing when there is none."""
    context.running.stop(visitor)


def clear(context: PageContext, setting: Setting, visitor: str) -> dict:
    """No questions, and nothing kept of the old ones but the visitor's pictures."""
    context.running.end(
        visitor, context.running.begin(visitor)
    )  # an answer under way no longer owns the page
    context.pool.forget(visitor)
    nothing = {"chart": Chart(own=[])}
    return _drawn([]) | buttons(running=False) | statuses(context, setting) | nothing


def given(context: PageContext, model: str, path: str | None, visitor: str) -> Iterator[dict]:
    """A picture from the visitor: it goes on the easel, and the input is empty again; then its file goes. Not
    at once: the browser may just be fetching it, to show it for the moment that it takes to read it."""
    if not path:
        yield {}
        return
    try:
        yield {"input": None} | _taken(context, model, path, visitor)
        time.sleep(FETCH_S)
    finally:
        remove_upload(path)


def _taken(context: PageContext, model: str, path: str, visitor: str) -> dict:
    try:
        with context.service.gate:
            scene = context.held[model].own(read_upload(path, 3))
    except ImageError as error:
        warn(f"{sentence(error)} {TAKEN}", title="Picture not taken")
        return {}
    except Exception:
        logger.exception("a picture could not be prepared")
        warn("This picture could not be prepared. Try another one.", title="Picture not taken")
        return {}
    context.album.add(visitor, model, scene)
    return {"easel": easel(context, model, visitor, scene.id)}


def switched(context: PageContext, setting: Setting, visitor: str) -> dict:
    """Another of the operator's models: its precisions and pictures, and no questions yet."""
    drawn = {"easel": easel(context, setting.model, visitor), "title": title(context, setting.model)}
    drawn |= menus(context.service, setting) | {"entered": setting}
    return clear(context, setting, visitor) | drawn


def enter(
    context: PageContext, query: Mapping | None, setting: Setting, thread: list[dict], visitor: str
) -> dict:
    """The page is opened: with what its address says, the first time (`query`, else None). All components
    get a value: see SideStatus for what skipping would do to those not drawn yet."""
    if setting.model not in context.held:
        return {}
    linked = bool(query) and query.get("p") == ASK
    values = [value for _, value in context.service.choices(setting.model)]
    asked = (query.get("l"), query.get("r")) if linked else setting.choices
    kept = [a if a in values else b for a, b in zip(asked, STARTING, strict=True)]
    new = Setting(setting.model, tuple(kept), setting.plan_json)
    drawn = {
        "easel": easel(context, new.model, visitor),
        "title": title(context, new.model),
        "entered": new,
    }
    return drawn | _drawn(thread) | menus(context.service, new) | statuses(context, new)


def statuses(context: PageContext, setting: Setting) -> dict:
    """What each side is set to."""
    elastic, change = context.service.models[setting.model], {}
    for name, choice in zip(SIDES, setting.choices, strict=True):
        try:
            side = setting.side(context.service, choice)
            change[f"status_{name}"] = ready(side, elastic.sizes.deploy(side)) | {
                "line": _memory(side, elastic)
            }
        except (ValueError, KeyError) as error:
            change[f"status_{name}"] = refused(error)
    return change


def _answer(
    context: PageContext,
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
    elastic = context.service.models[setting.model]
    world = context.held[setting.model].world
    try:
        if len(question) > LONGEST_QUESTION:
            raise ValueError(
                f"this question has {len(question):,} characters; at most {LONGEST_QUESTION:,} are read: "
                "shorten it"
            )
        sides = [setting.side(context.service, choice) for choice in setting.choices]
    except (ValueError, KeyError) as error:
        _refuse(error)
        yield _drawn(old)
        return
    notes = [_letters(question, elastic)]
    if world:
        notes.append(world.outside(question, scene.picture, elastic.tokenizer))
    same = list(takewhile(lambda turn: turn["scene"] == scene.id, reversed(before)))[::-1]
    job = context.running.begin(visitor)
    longest = (context_length(elastic, elastic.tokenizer) or 4 * LONGEST_ANSWER) // 4
    frames = chat(
        elastic,
        sides,
        [_messages(same, question, side) for side in SIDES],
        Sampling(temperature=0, max_tokens=min(LONGEST_ANSWER, longest)),
        "",
        context.service.gate,
        context.service.admission,
        stopped=job.is_set,
        pool=context.pool,
        visitor=visitor,
        pictures=[scene.picture],
        candidates=CANDIDATES,
    )
    frame, thread, problem = None, old, None
    try:
        with closing(frames):
            for frame in frames:
                if not context.running.is_newest(visitor, job):
                    yield {}  # the visitor has asked something else, which now owns the page
                    return
                shown = turn_shown(sides, frame, question, scene.answers.get(question.lower()))
                shown |= {"note": " ".join(filter(None, notes)), "source": scene.thumbnail}
                turn = {"scene": scene.id, "question": question, "shown": shown}
                turn |= {name: answer.text for name, answer in zip(SIDES, frame.answers, strict=True)}
                begun = _busy(cleared=returned is not None) if thread is old else {}
                thread = [*before, turn][-TURNS_KEPT:]
                yield {"talk": talk(thread)} | _reported(sides, frame, elastic) | begun
    except ValueError as error:  # a question, or a plan, that the model cannot be given
        problem = error
    except Exception:
        logger.exception("a question about a picture failed")
        problem = FAILED
    finally:
        newest = context.running.is_newest(visitor, job)
        context.running.end(visitor, job)
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


def _scene(context: PageContext, model: str, picture: Mapping, visitor: str) -> Scene:
    """The picture that the easel means; ImageError with a sentence where there is none."""
    if "id" in picture:
        return _known(context, model, picture["id"], visitor)
    with context.service.gate:
        scene = context.held[model].drawn(read_sent(picture["png"], 3))
    if all(other.id != scene.id for other in context.album.of(visitor, model)):
        context.album.add(visitor, model, scene)
    return scene


def _known(context: PageContext, model: str, identity: str, visitor: str) -> Scene:
    """An example, or one of the visitor's own."""
    scenes = {scene.id: scene for scene in context.album.of(visitor, model)} | context.held[model].examples
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


def easel(context: PageContext, model: str, visitor: str = "", selected: str | None = None) -> dict:
    """The visitor's own pictures and the examples, as Easel shows them."""
    gallery = context.held[model]
    own = [scene for scene in context.album.of(visitor, model) if scene.id.startswith("own:")]
    return {
        "items": [
            {"id": scene.id, "name": scene.name, "source": scene.source, "questions": scene.questions}
            for scene in (*own, *gallery.examples.values())
        ],
        "selected": selected,
        "questions": gallery.suggestions,
        "colours": PALETTE,
        "empty": "Drop a picture below, paste one, use the camera, or draw.",
        "paste_into": INPUT,
    }


def _drawn(thread: list[dict]) -> dict:
    return {"thread": thread, "talk": talk(thread)}


def talk(thread: list[dict]) -> dict:
    """The thread as Talk shows it."""
    return {"turns": [turn["shown"] for turn in thread], "empty": EMPTY}


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


def menus(service: Service, setting: Setting) -> dict:
    """Those of both sides, with what the model offers. A handler that says nothing else of the page says them
    all the same: Gradio forgets what a menu offers if it is skipped before it is drawn."""
    offered = service.choices(setting.model)
    pairs = zip(SIDES, setting.choices, strict=True)
    return {f"plan_{side}": precision_menu(ASK, side, offered, choice) for side, choice in pairs}


def _busy(cleared: bool) -> dict:
    return buttons(running=True) | ({"question": ""} if cleared else {})


def title(context: PageContext, model: str) -> str:
    """What is asked about, as Markdown."""
    world = context.held[model].world
    about = world.words if world else "Ask about a picture at two precisions."
    return f"**{shown(context.service.models[model].title)}** · {about}"
