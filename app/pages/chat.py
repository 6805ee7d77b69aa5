"""The Chat page: one prompt, two precisions, two answers side by side, and the token where they part.

What a message does is in `app.pages.chat_answers`; here the page is drawn and wired.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from app.components.answers import Answers
from app.components.blind import Blind
from app.components.menu import Menu
from app.components.side_status import SideStatus
from app.markdown import TAGS_SHOWN_AS_TEXT
from app.pages import averages
from app.pages.chat_answers import (
    AS_PLANNED,
    LARGEST_SEED,
    Ask,
    choices,
    clear,
    edit,
    regenerate,
    returned,
    send,
    starting,
    statuses,
    stop,
    switched,
)
from app.pages.chat_status import SIDES
from app.pages.context import LIGHT, Page, PageContext, precision_menu
from app.pages.kept_chat import READ_JS, STORE_JS, from_store, to_store
from app.side import OWN
from quept.plan import KV_BITS

# Gradio hides what overflows the page, which keeps everything in it from sticking, and does not let css reach
# the page itself. The bar to type in sticks to the bottom of the window no higher than the page's first line:
# while less of the page is in sight than the bar is high, it is not seen at all.
HEAD = """<style>
.gradio-container { overflow: clip !important; }
@keyframes quept-whole { from { opacity: 0; } to { opacity: 1; } }
@supports (animation-timeline: view()) {
  :has(> #chat-ask) { view-timeline: --quept-chat block; }
  #chat-ask {
    animation: quept-whole steps(1) both;
    animation-timeline: --quept-chat;
    animation-range: entry 0px entry 58px;
  }
  @media (max-width: 640px) { #chat-ask { animation-range: entry 0px entry 106px; } }
}
</style>"""

CHATS_WAITING = 16  # visitors whose page shows a place in line; further ones wait in Gradio's own queue
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


@dataclass
class ChatPage:
    """The page's components by the names that changes use."""

    plan_left: Menu
    plan_right: Menu
    chat_left: Answers
    chat_right: Answers
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
    entered: gr.State  # the model last drawn: events overtake each other


def build(context: PageContext) -> ChatPage:
    """Draw the page and wire it."""
    first = context.first
    offered = choices(context, first)
    start = Ask(first, starting([value for _, value in offered]), context.plan.value)
    shown = statuses(context, start)
    drawn: dict[str, Any] = {"history": gr.State([]), "entered": gr.State(first)}
    drawn["examples"] = gr.Dataset(
        components=[gr.Textbox(visible=False)],
        samples=[[text] for text in EXAMPLES],
        label="Try one of these",
        elem_id="chat-examples",
    )
    with gr.Row(elem_id="chat-sides", equal_height=False):
        for side, choice in zip(SIDES, start.choices, strict=True):
            with gr.Column(min_width=300, elem_id=f"chat-side-{side}", elem_classes="chat-side"):
                drawn[f"plan_{side}"] = precision_menu("chat", side, offered, choice)
                drawn[f"chat_{side}"] = Answers(
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
    routed = averages.draw(context)
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
    _wire(context, page, routed)
    return page


def _wire(context: PageContext, page: ChatPage, routed: averages.Averages) -> None:
    parts = {f.name: getattr(page, f.name) for f in fields(page)} | {"chart": context.chart}
    asked = [
        context.model,
        page.plan_left,
        page.plan_right,
        context.plan,
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
        for change in send(context, ask(values), history, prompt, request.session_hash):
            yield on_page(change)

    def on_example(request: gr.Request, history, sample, *values):
        for change in send(context, ask(values), history, sample[0], request.session_hash):
            yield on_page(change)

    def on_again(request: gr.Request, history, *values):
        for change in regenerate(context, ask(values), history, request.session_hash):
            yield on_page(change)

    def on_edit(request: gr.Request, event: gr.EditData, history, *values):
        for change in edit(context, ask(values), history, event.index, event.value, request.session_hash):
            yield on_page(change)

    def on_stop(request: gr.Request):
        stop(context, request.session_hash)

    def on_leave(request: gr.Request):
        context.forget(request.session_hash)

    def on_clear(request: gr.Request, *values):
        return on_page(clear(context, ask(values), request.session_hash))

    def on_switch(request: gr.Request, entered, text, *values):
        if values[0] not in context.held:
            return on_page({"entered": values[0]})
        if entered == values[0]:
            return on_page({})
        return on_page(switched(context, ask(values), from_store(text, values[0]), request.session_hash))

    def on_plan(history, *values):
        return on_page(statuses(context, ask(values), None, history))

    def on_equaliser(history, *values):
        known = values[0] in context.held
        return on_page(statuses(context, ask(values), OWN, history) if known else {})

    both = [page.status_left, page.status_right]
    kept = gr.Textbox(visible=False)

    def keeping(event) -> None:
        event.then(to_store, [context.model, page.history], kept, **LIGHT).then(
            None, kept, None, js=STORE_JS, **LIGHT
        )

    def on_return(request: gr.Request, entered, text, *values):
        history = from_store(text, values[0]) if values[0] in context.held else []
        if not history:
            return on_page({})
        if entered != values[0]:
            return on_page(switched(context, ask(values), history, request.session_hash))
        return on_page(returned(context, ask(values), history))

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
    reading = gr.context.Context.root_block.load(None, None, kept, js=READ_JS, **LIGHT)
    reading.then(on_return, [page.entered, kept, *asked], outputs, **LIGHT)
    gr.on(
        [page.plan_left.input, page.plan_right.input, page.kv.input],
        on_plan,
        [page.history, *asked],
        both,
        **LIGHT,
    )
    chosen = (on_plan, [page.history, *asked], both)
    averages.wire(context, routed, page.plan_right, lambda model: choices(context, model), *chosen)
    context.on_plan(on_equaliser, [page.history, *asked], both, **LIGHT)
    page.dice.click(None, None, page.seed, js=NEW_SEED_JS, **LIGHT)
    context.on_model(on_switch, [page.entered, kept, *asked], outputs, **LIGHT)
    gr.context.Context.root_block.unload(on_leave)


PAGE = Page("chat", "Chat", build, kinds=("language",), head=HEAD)
