"""What the Chat page does with a message: two answers at two precisions, each scored under full precision.

Plain functions and generators: they take a `PageContext` (what all visitors share), the page as it was when
the visitor asked, and values, and give or yield a change of the page, `{component name: new value}`, names as
in `app.pages.chat.ChatPage`. The history in the visitor's state is a list of turns, `{"user": ..., "left":
..., "right": ..., "made_with": ...}`.
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
from app.components.chart import Chart
from app.conversation import Frame, chat
from app.llama_side import LlamaSide
from app.markdown import as_markdown, as_typed
from app.pages.chat_status import SIDES, ready, refused, reported
from app.pages.context import PageContext, buttons, precision_menu
from app.side import EQUALIZER, LLAMA, OWN, side_of
from app.toast import inform, warn
from quept.export import exporter
from quept.plan import PlanError, PrecisionPlan
from quept.runtime.generate import Sampling
from quept.runtime.prompt import PromptError

logger = logging.getLogger(__name__)

FULL_PRECISION = "full precision"
LONGEST_PROMPT = 50_000  # characters; what fits the model is decided by its context, in tokens
LARGEST_SEED = 2**31 - 1
AS_PLANNED = "as planned"


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


def send(context: PageContext, ask: Ask, history: list[dict], prompt: str, visitor: str) -> Iterator[dict]:
    """A new message. The prompt is given back if there was no answer to it."""
    prompt = prompt or ""
    if not prompt.strip():
        warn("There is nothing to send yet: type a message first.", title="Empty message")
        yield {}
        return
    yield from _answer(context, ask, history, prompt, visitor, old=history, returned=prompt)


def regenerate(context: PageContext, ask: Ask, history: list[dict], visitor: str) -> Iterator[dict]:
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
    yield from _answer(context, ask, history[:-1], history[-1]["user"], visitor, old=history)


def edit(
    context: PageContext, ask: Ask, history: list[dict], index: int, text: str, visitor: str
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
    yield from _answer(context, ask, history[:turn], as_typed(text), visitor, old=history)


def stop(context: PageContext, visitor: str) -> None:
    """End the visitor's answer after the step it is in; does nothing when there is none."""
    context.running.stop(visitor)


def clear(context: PageContext, ask: Ask, visitor: str) -> dict:
    """An empty chat, and nothing kept of the old one."""
    context.forget(visitor)
    change = _drawn([]) | buttons(running=False) | statuses(context, ask) | _plotted([])
    return change | {"examples": gr.Dataset(visible=True)}


def returned(context: PageContext, ask: Ask, history: list[dict]) -> dict:
    """The chat as it was before the page was loaded again."""
    change = _drawn(history) | statuses(context, ask, None, history) | _plotted(history)
    return change | {"examples": gr.Dataset(visible=False)}


def switched(context: PageContext, ask: Ask, history: list[dict], visitor: str) -> dict:
    """Another of the operator's models: its plans, and the chat with it that the browser keeps."""
    offered = choices(context, ask.model)
    values = [value for _, value in offered]
    kept = [c if c in values else d for c, d in zip(ask.choices, starting(values), strict=True)]
    menus = {
        f"plan_{side}": precision_menu("chat", side, offered, choice)
        for side, choice in zip(SIDES, kept, strict=True)
    }
    ask = Ask(ask.model, tuple(kept), ask.plan_json)
    change = clear(context, ask, visitor) | (returned(context, ask, history) if history else {})
    return change | menus | {"entered": ask.model}


def statuses(
    context: PageContext, ask: Ask, only: Sequence[str] | None = None, history: Sequence[Mapping] = ()
) -> dict:
    """What each side is set to, before the next message. `only` limits it to the sides with these
    choices."""
    chosen = enumerate(zip(SIDES, ask.choices, strict=True))
    return {
        f"status_{side}": _ready(context, ask, choice, _labels(history, i))
        for i, (side, choice) in chosen
        if only is None or choice in only
    }


def _answer(
    context: PageContext,
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
        elastic = context.service.models.get(ask.model)
        if elastic is None:
            raise PromptError("the model of this page is not open here any more: reload the page")
        sides = [_side(context, ask, choice) for choice in ask.choices]
    except (ValueError, KeyError) as error:
        _refuse(error)
        yield _drawn(old)
        return
    histories = [messages(before, side) + [{"role": "user", "content": prompt}] for side in SIDES]
    others = {
        i: _in_llama(context, ask, side, history, sampling)
        for i, (side, history, choice) in enumerate(zip(sides, histories, ask.choices, strict=True))
        if choice == LLAMA
    }
    job = context.running.begin(visitor)
    shared = (context.service.gate, context.service.admission)
    frames = chat(
        elastic,
        sides,
        histories,
        sampling,
        ask.system or "",
        *shared,
        stopped=job.is_set,
        pool=context.pool,
        visitor=visitor,
        others=others,
    )
    frame, history, problem = None, old, None
    try:
        with closing(frames):
            for frame in frames:
                if not context.running.is_newest(visitor, job):
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
        newest = context.running.is_newest(visitor, job)
        context.running.end(visitor, job)
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


def _side(context: PageContext, ask: Ask, choice: str) -> PrecisionPlan:
    side = side_of(context.service.plan, ask.model, choice, ask.plan_json)
    if ask.kv != AS_PLANNED and (int(ask.kv) != side.kv or side.kv_blocks):
        side = replace(side, kv=int(ask.kv), kv_blocks=(), name=f"{side.name}, KV{ask.kv}")
    if choice == LLAMA:
        elastic, target = context.service.models[ask.model], exporter("gguf")
        if why := context.service.llama.missing or target.refuses(elastic, side):
            raise PlanError(why)
    return side


def _size(context: PageContext, ask: Ask, choice: str, side: PrecisionPlan) -> int:
    """Bytes of the file that llama.cpp runs, or of packed weights."""
    if choice == LLAMA:
        return context.service.opened[ask.model].file_sizes("gguf").deploy(side)
    return context.service.models[ask.model].sizes.deploy(side)


def _in_llama(
    context: PageContext, ask: Ask, side: PrecisionPlan, history: list[dict], sampling: Sampling
) -> LlamaSide:
    service, system = context.service, [{"role": "system", "content": ask.system}] if ask.system else []
    room, size = (service.exports, service.llama), _size(context, ask, LLAMA, side)
    return LlamaSide(service.opened[ask.model], side, *room, service.gate, system + history, sampling, size)


def starting(values: list[str]) -> tuple[str, str]:
    """Full precision, where there is such a plan, against the workbench's."""
    return FULL_PRECISION if FULL_PRECISION in values else values[0], EQUALIZER


def choices(context: PageContext, model: str) -> list[tuple[str, str]]:
    """Menu of a side: (label, value); llama.cpp where it runs."""
    offered = context.service.choices(model)
    if context.service.llama.missing:
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


def _ready(context: PageContext, ask: Ask, choice: str, labels: list[str]) -> dict:
    """labels: the plans of the answers so far, which the next one goes on from."""
    try:
        side = _side(context, ask, choice)
        status = ready(side, _size(context, ask, choice, side))
        others = list(dict.fromkeys(name for name in labels if name not in ("", side.name)))
        line = f"It goes on from answers at {', '.join(others)}; Clear begins anew" if others else ""
        return status | {"labels": labels, "line": line, "turn": len(labels)}
    except (ValueError, KeyError) as error:
        return refused(error)
