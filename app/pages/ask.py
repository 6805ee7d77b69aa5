"""The Ask page: questions about a picture, answered at two precisions side by side, and how sure each is.

What a question does is in `app.pages.ask_answers`; here the page is drawn and wired.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import gradio as gr

from app.components.budget import request_of
from app.components.easel import Easel, picture_of
from app.components.menu import Menu
from app.components.picture_input import PictureInput
from app.components.side_status import SideStatus
from app.components.talk import Talk
from app.link import ASK
from app.pages.ask_answers import (
    INPUT,
    PALETTE,
    STARTING,
    Setting,
    again,
    clear,
    easel,
    enter,
    given,
    menus,
    send,
    statuses,
    stop,
    switched,
    talk,
    title,
)
from app.pages.chat_status import SIDES
from app.pages.context import EVERY, LIGHT, WARNING, Page, PageContext, precision_menu
from app.scenes import Gallery

ASKING = 16  # visitors whose page shows a place in line; further ones wait in Gradio's own queue
# What the page shows is part of its address; the plan and the model are too.
ADDRESS_JS = """(left, right) => {
  const url = new URL(location.href);
  if (url.searchParams.get("p") !== "ask") return;
  const shown = { l: left, r: right };
  for (const [name, value] of Object.entries(shown)) url.searchParams.set(name, value);
  history.replaceState(history.state, "", url.href);
}"""


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
    entered: gr.State  # the setting last drawn: events overtake each other, and the browser's may be older


def build(context: PageContext) -> AskPage:
    """Draw the page and wire it."""
    begins, start = context.begins, Setting(context.model.value, STARTING, context.plan.value)
    offered = context.service.choices(start.model) if begins else [(choice, choice) for choice in STARTING]
    shown = statuses(context, start) if begins else {}
    drawn = {"thread": gr.State([]), "entered": gr.State(None)}
    with gr.Column(elem_id=ASK):
        with gr.Row(elem_id="ask-head"):
            drawn["title"] = gr.Markdown(title(context, start.model) if begins else "", elem_id="ask-title")
        with gr.Row(elem_id="ask-middle", equal_height=False):
            with gr.Column(min_width=300, elem_id="ask-pictures"):
                shown_on = easel(context, start.model) if begins else {"items": [], "colours": PALETTE}
                drawn["easel"] = Easel(shown_on, elem_id="ask-easel")
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
                                shown.get(f"status_{side}"), elem_id=f"ask-status-{side}"
                            )
                drawn["talk"] = Talk(talk([]), elem_id="ask-talk")
    page = AskPage(**drawn)
    _wire(context, page)
    return page


def _button(words: str, name: str, **options) -> gr.Button:
    return gr.Button(words, scale=0, min_width=60 + 8 * len(words), elem_id=f"ask-{name}", **options)


def _wire(context: PageContext, page: AskPage) -> None:
    parts = {f.name: getattr(page, f.name) for f in fields(page)} | {"chart": context.chart}
    outputs = [part for name, part in parts.items() if name != "clear"]
    both = [page.status_left, page.status_right]
    chosen = [*both, page.entered]
    buttons = [page.send, page.stop, page.again]
    # Few, since they change often.
    answers = [page.talk, page.thread, page.question, *both, *buttons, context.chart]
    setting = [context.model, page.plan_left, page.plan_right, context.plan]
    running = EVERY | {"queue": True, "concurrency_id": ASK, "concurrency_limit": ASKING}

    def on_page(change: dict) -> dict:
        return {parts[name]: value for name, value in change.items()} or gr.skip()

    def now(values: tuple) -> Setting:
        model, left, right, plan_json = values
        return Setting(model, (left, right), plan_json)

    def kept(entered: Setting | None) -> dict:
        return menus(context.service, entered) if entered and entered.model in context.held else {}

    def on_send(request: gr.Request, thread, picture, question, *values):
        for change in send(context, now(values), thread, picture, question, request.session_hash):
            yield on_page(change)

    def on_suggestion(request: gr.Request, event: gr.EventData, thread, *values):
        asked = request_of(event)
        question, picture = str(asked.get("question")), picture_of(asked.get("picture"))
        for change in send(context, now(values), thread, picture, question, request.session_hash):
            yield on_page({name: value for name, value in change.items() if name != "question"})

    def on_again(request: gr.Request, thread, *values):
        for change in again(context, now(values), thread, request.session_hash):
            yield on_page(change)

    def on_given(request: gr.Request, model, path):
        for change in given(context, model, path, request.session_hash):
            yield on_page(change)

    def on_stop(request: gr.Request):
        stop(context, request.session_hash)

    def on_clear(request: gr.Request, *values):
        return on_page(clear(context, now(values), request.session_hash))

    def on_switch(request: gr.Request, query, entered, *values):
        setting, visitor = now(values), request.session_hash
        if setting.model not in context.held:
            return on_page(kept(entered) | ({"entered": setting} if entered else {}))
        if entered and entered.model == setting.model:
            return on_page(kept(entered))
        change = switched(context, setting, visitor)
        return on_page(change if entered else change | enter(context, query, setting, [], visitor))

    def on_plan(*values):
        return on_page(statuses(context, now(values)) if values[0] in context.held else {})

    def on_choice(*values):
        setting = now(values)
        return on_page(statuses(context, setting) | {"entered": setting})

    def on_enter(request: gr.Request, query, entered, thread, *values):
        setting = now(values)
        if entered and entered.model == setting.model:
            setting = replace(setting, choices=entered.choices)
        query = None if entered else query
        return on_page(enter(context, query, setting, thread, request.session_hash) or kept(entered))

    def on_leave(request: gr.Request):
        context.forget(request.session_hash)

    def address(event) -> None:
        event.then(None, setting[1:3], None, js=ADDRESS_JS, **LIGHT)

    asked = [page.thread, page.easel, page.question, *setting]
    gr.on([page.send.click, page.question.submit], on_send, asked, answers, **running)
    page.easel.ask(on_suggestion, [page.thread, *setting], answers, **running)
    page.again.click(on_again, [page.thread, *setting], answers, **running)
    page.stop.click(on_stop, None, None, **LIGHT)
    page.clear.click(on_clear, setting, answers, **LIGHT)
    page.input.upload(on_given, [context.model, page.input], [page.input, page.easel], **EVERY | WARNING)
    address(gr.on([page.plan_left.input, page.plan_right.input], on_choice, setting, chosen, **LIGHT))
    context.on_model(on_switch, [context.query, page.entered, *setting], outputs, **LIGHT)
    context.on_plan(on_plan, setting, both, **LIGHT)
    entering = [context.query, page.entered, page.thread, *setting]
    address(context.tab.select(on_enter, entering, outputs, **LIGHT))
    gr.context.Context.root_block.unload(on_leave)


PAGE = Page(
    ASK,
    "Ask",
    build,
    kinds=("vision-language",),
    holds=lambda opened: Gallery.of(opened.elastic),
)
