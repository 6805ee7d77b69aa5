"""The Chat page: one prompt, two precisions, two answers side by side, and the token where they part.

`build` draws and wires. The handlers below it are plain functions and generators: they take a
`PageContext` (what all visitors share) and values, and give or yield a change of the page, `{component name:
new value}`, names as in `ChatPage`. The history in the visitor's state is a list of turns, `{"user": ...,
"left": ..., "right": ..., "made_with": ...}`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import Any

import gradio as gr

from app import own
from app.components.blind import Blind
from app.components.chart import Chart
from app.components.menu import Menu
from app.components.side_status import SideStatus
from app.conversation import Frame, chat
from app.llama_side import LlamaSide
from app.markdown import TAGS_SHOWN_AS_TEXT, as_markdown, as_typed
from app.pages.chat_status import SIDES, ready, refused, reported
from app.pages.context import LIGHT, Page, PageContext, buttons, precision_menu
from app.pages.kept_chat import READ_JS, STORE_JS, from_store, to_store
from app.side import EQUALIZER, LLAMA, OWN, side_of
from app.toast import inform, warn
from quept.export import exporter
from quept.plan import KV_BITS, PlanError, PrecisionPlan
from quept.runtime.generate import Sampling
from quept.runtime.prompt import PromptError

logger = logging.getLogger(__name__)

# Gradio hides what overflows the page, which keeps everything in it from sticking, and does not let css reach
# the page itself.
HEAD = "<style>.gradio-container { overflow: clip !important; }</style>"

FULL_PRECISION = "full precision"
LONGEST_PROMPT = 50_000  # characters; what fits the model is decided by its context, in tokens
LARGEST_SEED = 2**31 - 1
CHATS_WAITING = 16  # visitors whose page shows a place in line; further ones wait in Gradio's own queue

AS_PLANNED = "as planned"
KV_CHOICES = [("As the plan says", AS_PLANNED), *((f"{bits} bits", str(bits)) for bits in reversed(KV_BITS))]

EXAMPLES = [
    "What is the capital of France?",
    "Explain gravity to a child in three sentences.",
    "Write a short poem about the sea.",
    "List five fruits and their colours.",
]
EMPTY = {
    "left": "Ask something below.\n\n"
    "Both sides get the same words and the same seed; only the precision differs.",
    "right": "The answer at this precision appears here.\n\n"
    "The first token that differs from the other side is marked.",
}
NEW_SEED_JS = f"() => Math.floor(Math.random() * {LARGEST_SEED})"


@dataclass(frozen=True)
class Ask:
    """The page as it was when the visitor asked: model, plan choices, the equaliser's plan, and the
    settings."""

    model: str
    choices: tuple[str, str]
    plan_json: Mapping[str, Any] | None
    system: str = ""
    temperature: float = 0.0
    top_p: float = 0.9
    max_tokens: int = 256
    seed: int = 0
    kv: str = AS_PLANNED

    def sampling(self) -> Sampling:
        """The settings checked; PromptError with a sentence."""
        temperature = _number("temperature", self.temperature, 0, 5)
        top_p = _number("top-p", self.top_p, 0, 1)
        if top_p == 0:
            raise PromptError("top-p must be above 0: it is the share of probability to draw from")
        max_tokens = _number("longest answer", self.max_tokens, 1, 4096, whole=True)
        seed = _number("seed", self.seed, 0, LARGEST_SEED, whole=True)
        return Sampling(temperature=temperature, top_p=top_p, max_tokens=int(max_tokens), seed=int(seed))

    def made_with(self) -> str:
        """Identity of all that decides the text of an answer, to know whether asking again can give another
        one."""
        plan_json = self.plan_json if set(OWN) & set(self.choices) else None
        everything = [getattr(self, f.name) if f.name != "plan_json" else plan_json for f in fields(self)]
        return hashlib.sha256(repr(everything).encode()).hexdigest()[:16]


def _number(name: str, value: object, low: float, high: float, whole: bool = False) -> float:
    kind = "a whole number" if whole else "a number"
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not known or not low <= value <= high or (whole and value != int(value)):
        raise PromptError(f"the {name} must be {kind} from {low:,} to {high:,}: change it under Settings")
    return value


# Handlers


def send(desk: PageContext, ask: Ask, history: list[dict], prompt: str, visitor: str) -> Iterator[dict]:
    """A new message. The prompt is given back if there was no answer to it."""
    prompt = prompt or ""
    if not prompt.strip():
        warn("There is nothing to send yet: type a message first.", title="Empty message")
        yield {}
        return
    yield from _answer(desk, ask, history, prompt, visitor, old=history, returned=prompt)


def regenerate(desk: PageContext, ask: Ask, history: list[dict], visitor: str) -> Iterator[dict]:
    """Another answer to the last message: at the plans and settings of now, or, if they are still the same,
    with another seed."""
    if not history:
        warn("There is no answer to write again yet: send a message first.", title="Nothing to regenerate")
        yield {}
        return
    if history[-1].get("made_with") == ask.made_with():
        if ask.temperature == 0:
            inform(
                "At temperature 0 the same settings give the same answer. "
                "Raise the temperature or choose another plan.",
                title="Same answer again",
            )
        else:
            ask = replace(ask, seed=secrets.randbelow(LARGEST_SEED))
            yield {"seed": ask.seed}
    yield from _answer(desk, ask, history[:-1], history[-1]["user"], visitor, old=history)


def edit(
    desk: PageContext, ask: Ask, history: list[dict], index: int, text: str, visitor: str
) -> Iterator[dict]:
    """A message of the visitor was rewritten: what came after it is dropped and answered anew. `index` counts
    shown messages."""
    turn, role = divmod(index, 2) if isinstance(index, int) else (-1, 0)
    if role or not 0 <= turn < len(history):
        warn("Only your own messages can be edited.", title="Not edited")
        yield _drawn(history)
        return
    if not isinstance(text, str) or not text.strip():
        warn("An empty message cannot be sent; the old one was kept.", title="Not edited")
        yield _drawn(history)
        return
    yield from _answer(desk, ask, history[:turn], as_typed(text), visitor, old=history)


def stop(desk: PageContext, visitor: str) -> None:
    """End the visitor's answer after the step it is in; does nothing when there is none."""
    desk.running.stop(visitor)


def clear(desk: PageContext, ask: Ask, visitor: str) -> dict:
    """An empty chat, and nothing kept of the old one."""
    desk.forget(visitor)
    change = _drawn([]) | buttons(running=False) | statuses(desk, ask) | _plotted([])
    return change | {"examples": gr.Dataset(visible=True)}


def returned(desk: PageContext, ask: Ask, history: list[dict]) -> dict:
    """The chat as it was before the page was loaded again."""
    change = _drawn(history) | statuses(desk, ask, None, history) | _plotted(history)
    return change | {"examples": gr.Dataset(visible=False)}


def switched(desk: PageContext, ask: Ask, visitor: str) -> dict:
    """Another of the operator's models: its plans, and an empty chat."""
    offered = choices(desk, ask.model)
    values = [value for _, value in offered]
    kept = [c if c in values else d for c, d in zip(ask.choices, _starting(values), strict=True)]
    menus = {
        f"plan_{side}": precision_menu("chat", side, offered, choice)
        for side, choice in zip(SIDES, kept, strict=True)
    }
    ask = Ask(ask.model, tuple(kept), None)
    return clear(desk, ask, visitor) | menus


def statuses(
    desk: PageContext, ask: Ask, only: Sequence[str] | None = None, history: Sequence[Mapping] = ()
) -> dict:
    """What each side is set to, before the next message. `only` limits it to the sides with these
    choices."""
    chosen = enumerate(zip(SIDES, ask.choices, strict=True))
    return {
        f"status_{side}": _ready(desk, ask, choice, _labels(history, i))
        for i, (side, choice) in chosen
        if only is None or choice in only
    }


def _answer(
    desk: PageContext,
    ask: Ask,
    before: list[dict],
    prompt: str,
    visitor: str,
    old: list[dict],
    returned: str | None = None,
) -> Iterator[dict]:
    """Run both sides on `before` plus the prompt. Without any text at the end the page goes back to `old` and
    gives `returned` back."""
    try:
        sampling = ask.sampling()
        if len(prompt) > LONGEST_PROMPT:
            raise PromptError(
                f"this message has {len(prompt):,} characters; "
                f"the chat takes at most {LONGEST_PROMPT:,}: shorten it"
            )
        elastic = desk.service.models.get(ask.model)
        if elastic is None:
            raise PromptError("the model of this page is not open here any more: reload the page")
        sides = [_side(desk, ask, choice) for choice in ask.choices]
    except (ValueError, KeyError) as error:
        _refuse(error)
        yield _drawn(old)
        return
    histories = [messages(before, side) + [{"role": "user", "content": prompt}] for side in SIDES]
    others = {
        i: _in_llama(desk, ask, side, history, sampling)
        for i, (side, history, choice) in enumerate(zip(sides, histories, ask.choices, strict=True))
        if choice == LLAMA
    }
    job = desk.running.begin(visitor)
    shared = (desk.service.gate, desk.service.admission)
    frames = chat(
        elastic,
        sides,
        histories,
        sampling,
        ask.system or "",
        *shared,
        stopped=job.is_set,
        pool=desk.pool,
        visitor=visitor,
        others=others,
    )
    frame, history, problem = None, old, None
    try:
        with closing(frames):
            for frame in frames:
                if not desk.running.is_newest(visitor, job):
                    return  # the visitor has asked for something else, which now owns the page
                turn = {"user": prompt, "made_with": ask.made_with()} | dict(
                    zip(SIDES, _texts(frame), strict=True)
                )
                turn["plans"] = [side.name for side in sides]
                change = _drawn([*before, turn], frame, editable=None) | _told(sides, frame, before)
                yield change | (_busy(cleared=returned is not None) if history is old else {})
                history = [*before, turn]
    except (PromptError, PlanError) as error:
        problem = error
    except Exception:
        logger.exception("a chat failed")
        problem = "The answer failed for a reason of its own, not yours. Your message was kept: try again"
    finally:
        newest = desk.running.is_newest(visitor, job)
        desk.running.end(visitor, job)
    if not newest:
        return
    shown = _told(sides, frame, before) if frame else {}
    if frame and any(answer.text for answer in frame.answers):
        if problem:
            _refuse(problem)
        pairs = zip(SIDES, sides, frame.answers, strict=True)
        history[-1]["scored"] = {name: own.scored(elastic, side, a) for name, side, a in pairs}
        for i, (name, side) in enumerate(zip(SIDES, sides, strict=True)):
            if i not in others:
                shown[f"status_{name}"]["own"] = own.figure(history, side.key(elastic.layers))
        yield _drawn(history, frame) | shown | buttons(running=False) | _plotted(history)
        return
    if frame and all(answer.state == "done" for answer in frame.answers):
        inform(
            "Both sides ended their answer at once, without a word. Ask in other words.", title="No answer"
        )
    problem = problem or (frame and next((a.error for a in frame.answers if a.state == "error"), None))
    if problem:
        _refuse(problem)
    back = {"prompt": returned} if returned is not None else {}
    yield _drawn(old) | shown | buttons(running=False) | back | {"examples": gr.Dataset(visible=not old)}


def _told(sides: list[PrecisionPlan], frame: Frame, before: list[dict]) -> dict:
    """The statuses of both sides, with the plan of every answer above them."""
    change = reported(sides, frame)
    for i, (name, side) in enumerate(zip(SIDES, sides, strict=True)):
        labels = [*_labels(before, i), side.name]
        change[f"status_{name}"] |= {"turn": len(before), "labels": labels}
    return change


def _labels(history: Sequence[Mapping], i: int) -> list[str]:
    return [turn["plans"][i] if "plans" in turn else "" for turn in history]


def _plotted(history: list[dict]) -> dict:
    return {"chart": Chart(own=own.points(history))}


def _side(desk: PageContext, ask: Ask, choice: str) -> PrecisionPlan:
    side = side_of(desk.service.plan, ask.model, choice, ask.plan_json)
    if ask.kv != AS_PLANNED and int(ask.kv) != side.kv:
        side = replace(side, kv=int(ask.kv), name=f"{side.name}, KV{ask.kv}")
    if choice == LLAMA:
        elastic, target = desk.service.models[ask.model], exporter("gguf")
        if why := desk.service.llama.missing or target.refuses(elastic, side):
            raise PlanError(why)
    return side


def _size(desk: PageContext, ask: Ask, choice: str, side: PrecisionPlan) -> int:
    """Bytes of the file that llama.cpp runs, or of packed weights."""
    if choice == LLAMA:
        return desk.service.opened[ask.model].file_sizes("gguf").deploy(side)
    return desk.service.models[ask.model].sizes.deploy(side)


def _in_llama(
    desk: PageContext, ask: Ask, side: PrecisionPlan, history: list[dict], sampling: Sampling
) -> LlamaSide:
    service, system = desk.service, [{"role": "system", "content": ask.system}] if ask.system else []
    room, size = (service.exports, service.llama), _size(desk, ask, LLAMA, side)
    return LlamaSide(service.opened[ask.model], side, *room, service.gate, system + history, sampling, size)


def choices(desk: PageContext, model: str) -> list[tuple[str, str]]:
    """Menu of a side: (label, value); llama.cpp where it runs."""
    offered = desk.service.choices(model)
    if desk.service.llama.missing:
        return offered
    return [*offered[:1], ("Your plan in llama.cpp", LLAMA), *offered[1:]]


def _refuse(error: object) -> None:
    """A sentence in the page."""
    words = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    warn((words[:1].upper() + words[1:]).rstrip(".") + ".", title="Not sent")


def messages(history: list[dict], side: str) -> list[dict]:
    """One side's conversation: the visitor's turns are common, the answers its own."""
    pairs = (
        [{"role": "user", "content": t["user"]}, {"role": "assistant", "content": t[side]}] for t in history
    )
    return [message for pair in pairs for message in pair]


def _texts(frame: Frame) -> list[str]:
    return [answer.text for answer in frame.answers]


# What the page shows


def _drawn(history: list[dict], frame: Frame | None = None, editable: str | None = "user") -> dict:
    """Both chats and the history behind them. While an answer is under way its empty beginning is left
    out."""
    change: dict = {"history": history}
    for i, side in enumerate(SIDES):
        shown = messages(history, side)
        if shown and not shown[-1]["content"]:
            under_way = frame and frame.answers[i].state not in ("done", "stopped", "error")
            shown[-1:] = [] if under_way else [{"role": "assistant", "content": "*(no answer)*"}]
        safe = [{"role": m["role"], "content": as_markdown(m["content"])} for m in shown]
        change[f"chat_{side}"] = gr.Chatbot(safe, editable=editable)
    return change


def _busy(cleared: bool) -> dict:
    change = buttons(running=True) | {"examples": gr.Dataset(visible=False)}
    return change | ({"prompt": ""} if cleared else {})


def _ready(desk: PageContext, ask: Ask, choice: str, labels: list[str]) -> dict:
    """labels: the plans of the answers so far, which the next one goes on from."""
    try:
        side = _side(desk, ask, choice)
        status = ready(side, _size(desk, ask, choice, side))
        others = list(dict.fromkeys(name for name in labels if name not in ("", side.name)))
        line = f"It goes on from answers at {', '.join(others)}; Clear begins anew" if others else ""
        return status | {"labels": labels, "line": line, "turn": len(labels)}
    except (ValueError, KeyError) as error:
        return refused(error)


# The page


@dataclass
class ChatPage:
    """The page's components by the names that changes use."""

    plan_left: Menu
    plan_right: Menu
    chat_left: gr.Chatbot
    chat_right: gr.Chatbot
    status_left: SideStatus
    status_right: SideStatus
    prompt: gr.Textbox
    send: gr.Button
    stop: gr.Button
    again: gr.Button
    clear: gr.Button
    examples: gr.Dataset
    system: gr.Textbox
    temperature: gr.Slider
    top_p: gr.Slider
    max_tokens: gr.Slider
    seed: gr.Number
    kv: Menu
    dice: gr.Button
    history: gr.State


def _starting(values: list[str]) -> tuple[str, str]:
    """Full precision, where there is such a plan, against the workbench's."""
    return FULL_PRECISION if FULL_PRECISION in values else values[0], EQUALIZER


def build(desk: PageContext) -> ChatPage:
    """Draw the page and wire it."""
    first = desk.first
    offered = choices(desk, first)
    start = Ask(first, _starting([value for _, value in offered]), desk.plan.value)
    shown = statuses(desk, start)
    drawn: dict[str, Any] = {"history": gr.State([])}
    with gr.Row(elem_id="chat-sides", equal_height=False):
        for side, choice in zip(SIDES, start.choices, strict=True):
            with gr.Column(min_width=300, elem_id=f"chat-side-{side}", elem_classes="chat-side"):
                drawn[f"plan_{side}"] = precision_menu("chat", side, offered, choice)
                drawn[f"chat_{side}"] = gr.Chatbot(
                    label=f"{side.capitalize()} answer",
                    elem_id=f"chat-{side}",
                    show_label=False,
                    height="var(--chat-height)",
                    placeholder=EMPTY[side],
                    editable="user",
                    buttons=["copy", "copy_all"],
                    latex_delimiters=[],
                    allow_tags=TAGS_SHOWN_AS_TEXT,
                    feedback_options=None,
                    layout="bubble",
                )
                drawn[f"status_{side}"] = SideStatus(
                    shown[f"status_{side}"], chat=f"chat-{side}", elem_id=f"chat-status-{side}"
                )
    drawn["examples"] = gr.Dataset(
        components=[gr.Textbox(visible=False)],
        samples=[[text] for text in EXAMPLES],
        label="Try one of these",
        elem_id="chat-examples",
    )
    with gr.Row(elem_id="chat-ask", equal_height=False):
        drawn["prompt"] = gr.Textbox(
            label="Message to both sides",
            show_label=False,
            placeholder="Message both sides (Shift+Enter: new line)",
            lines=1,
            max_lines=8,
            scale=1,
            min_width=160,
            container=False,
            elem_id="chat-prompt",
            autofocus=False,
        )
        drawn["send"] = gr.Button("Send", variant="primary", scale=0, min_width=88, elem_id="chat-send")
        drawn["stop"] = gr.Button(
            "Stop", variant="stop", scale=0, min_width=88, visible=False, elem_id="chat-stop"
        )
        drawn["again"] = gr.Button("Regenerate", scale=0, min_width=128, elem_id="chat-regenerate")
        drawn["clear"] = gr.Button("Clear", scale=0, min_width=80, elem_id="chat-clear")
    Blind(elem_id="chat-blind")
    with gr.Accordion("Settings", open=False, elem_id="chat-settings"):
        drawn["system"] = gr.Textbox(
            label="System prompt",
            value=start.system,
            lines=2,
            max_lines=6,
            elem_id="chat-system",
            placeholder="Empty: the model's own",
        )
        with gr.Row():
            drawn["temperature"] = gr.Slider(
                0,
                2,
                start.temperature,
                step=0.05,
                label="Temperature",
                info="0: always the likeliest token",
                elem_id="chat-temperature",
            )
            drawn["top_p"] = gr.Slider(
                0.05,
                1,
                start.top_p,
                step=0.05,
                label="Top-p",
                info="Draw from this share of probability",
                elem_id="chat-top-p",
            )
            drawn["max_tokens"] = gr.Slider(
                16,
                1024,
                start.max_tokens,
                step=16,
                label="Longest answer",
                info="In tokens",
                elem_id="chat-max-tokens",
            )
            drawn["kv"] = Menu(start.kv, choices=KV_CHOICES, name="KV cache of both sides", elem_id="chat-kv")
            with gr.Column(min_width=160, elem_id="chat-seed-box"):
                drawn["seed"] = gr.Number(
                    start.seed,
                    label="Seed",
                    info="The same seed gives the same text",
                    precision=0,
                    elem_id="chat-seed",
                )
                drawn["dice"] = gr.Button("🎲 New seed", size="sm", elem_id="chat-new-seed")
    page = ChatPage(**drawn)
    _wire(desk, page)
    return page


def _wire(desk: PageContext, page: ChatPage) -> None:
    parts = {f.name: getattr(page, f.name) for f in fields(page)} | {"chart": desk.chart}
    asked = [
        desk.model,
        page.plan_left,
        page.plan_right,
        desk.plan,
        page.system,
        page.temperature,
        page.top_p,
        page.max_tokens,
        page.seed,
        page.kv,
    ]
    running = LIGHT | {"queue": True, "concurrency_id": "chat", "concurrency_limit": CHATS_WAITING}
    outputs = [
        part
        for name, part in parts.items()
        if name not in ("clear", "dice", "system", "temperature", "top_p", "max_tokens", "kv")
    ]

    def on_page(change: dict) -> dict:
        return {parts[name]: value for name, value in change.items()} or {page.status_left: gr.skip()}

    def ask(values: tuple) -> Ask:
        name, left, right, plan_json, *settings = values
        return Ask(name, (left, right), plan_json, *settings)

    def on_send(request: gr.Request, history, prompt, *values):
        for change in send(desk, ask(values), history, prompt, request.session_hash):
            yield on_page(change)

    def on_example(request: gr.Request, history, sample, *values):
        for change in send(desk, ask(values), history, sample[0], request.session_hash):
            yield on_page(change)

    def on_again(request: gr.Request, history, *values):
        for change in regenerate(desk, ask(values), history, request.session_hash):
            yield on_page(change)

    def on_edit(request: gr.Request, event: gr.EditData, history, *values):
        for change in edit(desk, ask(values), history, event.index, event.value, request.session_hash):
            yield on_page(change)

    def on_stop(request: gr.Request):
        stop(desk, request.session_hash)

    def on_leave(request: gr.Request):
        desk.forget(request.session_hash)

    def on_clear(request: gr.Request, *values):
        return on_page(clear(desk, ask(values), request.session_hash))

    def on_switch(request: gr.Request, *values):
        return on_page(switched(desk, ask(values), request.session_hash) if values[0] in desk.held else {})

    def on_plan(history, *values):
        return on_page(statuses(desk, ask(values), None, history))

    def on_equaliser(history, *values):
        known = values[0] in desk.held
        return on_page(statuses(desk, ask(values), OWN, history) if known else {})

    both = [page.status_left, page.status_right]
    kept = gr.Textbox(visible=False)
    silent = {"show_progress": "hidden", "api_visibility": "private"}

    def keeping(event) -> None:
        event.then(to_store, [desk.model, page.history], kept, **LIGHT).then(
            None, kept, None, js=STORE_JS, **silent
        )

    def on_return(text, *values):
        history = from_store(text, values[0]) if values[0] in desk.held else []
        return on_page(returned(desk, ask(values), history) if history else {})

    sent = [page.history, page.prompt, *asked]
    keeping(gr.on([page.send.click, page.prompt.submit], on_send, sent, outputs, **running))
    example = [page.history, page.examples, *asked]
    keeping(page.examples.click(on_example, example, outputs, **running))
    keeping(page.again.click(on_again, [page.history, *asked], outputs, **running))
    edits = [page.chat_left.edit, page.chat_right.edit]
    keeping(gr.on(edits, on_edit, [page.history, *asked], outputs, **running))
    page.stop.click(on_stop, None, None, **LIGHT)
    bins = [page.clear.click, page.chat_left.clear, page.chat_right.clear]
    keeping(gr.on(bins, on_clear, asked, outputs, **LIGHT))
    reading = gr.context.Context.root_block.load(None, None, kept, js=READ_JS, **silent)
    reading.then(on_return, [kept, *asked], outputs, **LIGHT)
    gr.on(
        [page.plan_left.input, page.plan_right.input, page.kv.input],
        on_plan,
        [page.history, *asked],
        both,
        **LIGHT,
    )
    desk.on_plan(on_equaliser, [page.history, *asked], both, **LIGHT)
    page.dice.click(None, None, page.seed, js=NEW_SEED_JS, **LIGHT)
    desk.on_model(on_switch, asked, outputs, **LIGHT)
    gr.context.Context.root_block.unload(on_leave)


PAGE = Page("chat", "Chat", build, kinds=("language",), head=HEAD)
