"""Build the pages over a service and serve them."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from app.api import expose
from app.border import KEPT_S, app_kwargs
from app.components.menu import Menu
from app.fair_queue import share_out
from app.pages import PAGES
from app.pages.context import LIGHT, Page
from app.service import Service
from app.shell import workbench
from app.splash import Splash
from app.toast import shown
from quept.runtime import template
from quept.runtime.memory import release_libraries

STYLE = Path(__file__).parent / "style.css"
ADDRESS = Path(__file__).parent / "shell" / "address.js"
TITLE = "QuEPT · precision explorer"
QUESTION = "How small can this model get before it gets worse?"
TAGLINE = (
    "Fewer bits per weight make it smaller, but worse. "
    "Drag each layer's bits: memory and quality show at once, then try it."
)
CALIBRATIONS = {  # by the end of a recipe's name
    "weight-only": "bits of the weights",
    "weight-act": "bits of weights and activations",
    "mobiquant": "bits chosen token by token",
}
THREADS = 200  # jobs wait at the gate in a thread each; one that waits must not keep a light one out
OPEN_AFTER_S = 5.0  # in which a browser has drawn the page
# Between Python's threads; each of a forward pass's thousand operations waits so long while another computes.
SWITCH_S = 0.0005
UPLOADS_KEPT = (60, KEPT_S)  # every so many seconds files go that came so long ago and that nobody took
# A tab that is chosen makes an entry in the browser's history.
SEEN_JS = "() => window.queptSeen('%s')"
THEME = gr.themes.Soft(
    primary_hue="indigo",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(  # words at 4.5:1 and better on whatever they lie on
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    block_label_text_color="*primary_700",
    block_title_text_color="*primary_700",
)


def build_app(service: Service, pages: Sequence[Page] = PAGES) -> gr.Blocks:
    """The whole app as Blocks: those of the pages that show a model that is open; serve it with `launch`'s
    options."""
    names = list(service.models)
    pages = [page for page in pages if page.models(service)]
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=UPLOADS_KEPT) as demo:
        with gr.Row(elem_id="masthead"):
            gr.Markdown(f"# {QUESTION}\n{shown(_opened(service))}", elem_id="title")
            offered = [(entry(service.cards[name].title), name) for name in names]
            model = Menu(names[0], choices=offered, name="Model", elem_id="model", visible=len(names) > 1)
        bench = workbench.draw(service, model).held
        panes: list[gr.Component] = []
        with gr.Tabs(elem_id="tabs", selected=_begins(service, pages, names[0])):
            for page in pages:
                with gr.Tab(page.label, id=page.id) as tab:
                    tab.select(None, None, None, js=SEEN_JS % page.id, trigger_mode="multiple")
                    pane = _pane(page, service, names[0])
                    with pane[1]:
                        page.build(page.context(service, bench=bench, tab=tab))
                panes += pane

        def reach(name: str) -> list:
            return [part for page in pages for part in _reach(page.refusal(service, name))]

        bench.opened.change(reach, bench.opened, panes, **LIGHT)
        if service.waiting:
            demo.load(partial(_open_the_rest, service), None, None, **LIGHT)
        expose(service)
    demo.queue(default_concurrency_limit=16)
    share_out(demo)
    return demo


def entry(title: str) -> str:
    """A model's entry in the menu: its title, and what the name of its calibration at the end means."""
    means = next((words for name, words in CALIBRATIONS.items() if title.endswith(name)), "")
    return f"{title}: {means}" if means else title


def _open_the_rest(service: Service) -> None:
    """A page is open: the models that wait are opened behind it, so that choosing one takes no time."""
    threading.Thread(target=service.open_waiting, args=(OPEN_AFTER_S,), daemon=True).start()


def _opened(service: Service) -> str:
    """What the page is for, under the title, and what is open where no menu says it."""
    titles = list(dict.fromkeys(card.title for card in service.cards.values()))
    return f"{titles[0]}. {TAGLINE}" if len(titles) == 1 else TAGLINE


def _begins(service: Service, pages: Sequence[Page], model: str) -> str:
    """The page that the app begins with: the first that is for models of this one's kind."""
    return next(page.id for page in pages if page.shows(service.cards[model]))


def _pane(page: Page, service: Service, model: str) -> tuple[gr.Markdown, gr.Column]:
    """Words where the page cannot show the model, and what it is drawn in."""
    refusal = page.refusal(service, model)
    words = gr.Markdown(shown(refusal), visible=bool(refusal), elem_classes="refusal")
    return words, gr.Column(visible=not refusal, elem_classes="pane")


def _reach(refusal: str) -> tuple[gr.Markdown, gr.Column]:
    return gr.Markdown(shown(refusal), visible=bool(refusal)), gr.Column(visible=not refusal)


def look(pages: Sequence[Page] = PAGES) -> dict[str, Any]:
    """Theme, style and head, as Blocks.launch takes them."""
    css = "".join([STYLE.read_text(encoding="utf-8"), *(page.css for page in pages)])
    head = [f"<script>{ADDRESS.read_text(encoding='utf-8')}</script>", *(page.head for page in pages)]
    return {"theme": THEME, "css": css, "head": "".join(head)}


def _settle() -> None:
    """What need not be done before the first page: collecting what the start left behind, once."""
    gc.collect()
    gc.freeze()  # what is loaded stays: without this a collection stops every visitor for some 150 ms
    gc.enable()
    release_libraries()  # what only starting needed
    template.begin()  # what the first message takes


def launch(service: Service, splash: Splash, host: str, public: bool = False) -> None:
    """Hand the port over from the loading screen and serve until interrupted. public: under any host name."""
    options = app_kwargs(host, public)  # first: components keep the folder of uploads
    options["middleware"].append(Middleware(splash.ahead.noting))
    demo = build_app(service)
    splash.step("Ready")
    splash.stop()
    sys.setswitchinterval(SWITCH_S)
    behind = threading.Timer(OPEN_AFTER_S, _settle)
    behind.daemon = True
    behind.start()
    demo.launch(
        server_name=host,
        server_port=splash.port,
        **look(),
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,  # nothing of a visitor's is kept, in their browser either
        max_file_size="10mb",
        max_threads=THREADS,
        app_kwargs=options,
        allowed_paths=[],
        share=False,
        quiet=False,
        footer_links=[],
    )
