"""What a page of the app is: an entry of the table in `app.pages`, drawn over one `PageContext`.

A page's module has handlers, plain functions and generators over the context and values, and a build function
that draws and wires. Its style is the file of its id beside it, `ask.css`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from app.cache_pool import CachePool
from app.components.chart import Chart
from app.components.menu import Menu
from app.lazy import Lazy
from app.open_model import Card, OpenModel
from app.pictures import Album
from app.running import Running
from app.service import Service

# How handlers run: LIGHT at once; EVERY, all of them, however fast they come; WARNING with words for the
# visitor, which travel through the queue only; RUNNING the model. None shows progress on a component, hidden
# or not: of each that does, Gradio copies all it holds in the browser whenever any handler gets further.
LIGHT = {"queue": False, "show_progress": "hidden", "show_progress_on": (), "api_visibility": "private"}
EVERY = LIGHT | {"trigger_mode": "multiple"}
WARNING = LIGHT | {"queue": True, "concurrency_limit": 16}
RUNNING = EVERY | {"queue": True, "concurrency_id": "measure", "concurrency_limit": 48}
KINDS = {
    "language": "language models",
    "vision": "classifiers of pictures",
    "vision-language": "models that answer questions about pictures",
}


@dataclass
class Held:
    """What the workbench holds of a visitor; see `app.pages`. task: the name of what plans are measured by,
    "" for the model's first.
    opened, chosen, measured: states that change with the model's name, with {"model", "plan"}, and with
    those of the plan that was measured and its task."""

    model: Menu
    task: gr.State
    plan: gr.State
    tried: gr.State
    chart: Chart
    query: gr.State
    opened: gr.State
    chosen: gr.State
    measured: gr.State


@dataclass
class PageContext:
    """What all visitors of a page share, and what it has of the workbench.

    held: what the page keeps of each model that it is for, by the model's name; running, pool, album: the
    answers under way, the key-value caches kept between turns, the pictures that visitors gave; bench, tab:
    the components around the page, see `app.pages`.
    """

    service: Service
    held: Mapping[str, Any] = field(default_factory=dict)
    running: Running = field(default_factory=Running)
    pool: CachePool = field(default_factory=CachePool)
    album: Album = field(default_factory=Album)
    bench: Held | None = None
    tab: gr.Tab | None = None

    @property
    def model(self) -> gr.State:
        return self.bench.opened

    @property
    def task(self) -> gr.State:
        return self.bench.task

    @property
    def plan(self) -> gr.State:
        return self.bench.plan

    @property
    def tried(self) -> gr.State:
        return self.bench.tried

    @property
    def chart(self) -> Chart:
        return self.bench.chart

    @property
    def query(self) -> gr.State:
        return self.bench.query

    @property
    def first(self) -> str:
        """The model that the page is drawn with: the one in the menu, or one that it is for."""
        return self.model.value if self.begins else next(iter(self.held))

    @property
    def begins(self) -> bool:
        """Whether the page is for the model in the menu that the app begins with. One that is not need not
        be drawn with a model, which would have to be opened: another is chosen before it is seen."""
        return self.model.value in self.held

    def on_model(self, *listener: Any, **options: Any):
        """Another model was chosen."""
        return self.bench.opened.change(*listener, **options)

    def on_plan(self, *listener: Any, **options: Any):
        """Another plan, or model, was chosen."""
        return self.bench.chosen.change(*listener, **options)

    def on_measured(self, *listener: Any, **options: Any):
        """The plan on the workbench was measured whole."""
        return self.bench.measured.change(*listener, **options)

    def forget(self, visitor: str) -> list[Any]:
        """The visitor has left: their answers and conversations go, and their pictures, which it returns."""
        self.running.stop(visitor)
        self.pool.forget(visitor)
        return self.album.forget(visitor)


@dataclass(frozen=True)
class Page:
    """One entry of the table. build: draws the page inside its tab; kinds, needs, lacks: of the models it is
    for, all where there are none, what else such a model must have, and words for one that has it not (a
    page for none that is open is left out); holds: what it keeps of one, see PageContext; head: what it adds
    to the document's head."""

    id: str
    label: str
    build: Callable[[PageContext], Any]
    kinds: tuple[str, ...] = ()
    needs: Callable[[Card], bool] = lambda card: True
    lacks: str = ""
    holds: Callable[[OpenModel], Any] = lambda opened: None
    head: str = ""

    @property
    def css(self) -> str:
        file = Path(__file__).parent / f"{self.id}.css"
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def shows(self, card: Card) -> bool:
        return (not self.kinds or card.kind in self.kinds) and self.needs(card)

    def models(self, service: Service) -> list[str]:
        """Names of the models that it is for."""
        return [name for name, card in service.cards.items() if self.shows(card)]

    def context(self, service: Service, **drawn) -> PageContext:
        def holding(name: str) -> Callable[[], Any]:
            return lambda: self.holds(service.opened[name])

        held = Lazy({name: holding(name) for name in self.models(service)})
        return PageContext(service, held, **drawn)

    def refusal(self, service: Service, model: str) -> str:
        """Why it cannot show the model, and what to choose; "" where it can."""
        card = service.cards[model]
        if self.shows(card):
            return ""
        others = " or ".join(dict.fromkeys(service.cards[name].title for name in self.models(service)))
        if self.kinds and card.kind not in self.kinds:
            reason = f"{self.label} is for {' and '.join(KINDS[kind] for kind in self.kinds)}"
        else:
            reason = self.lacks
        return f"{reason}. {card.title} is not one: choose {others} in the menu at the top."


def precision_menu(page: str, side: str, offered: list[tuple[str, str]], choice: str) -> Menu:
    """The menu of precisions of one side of a page, "left" or "right"."""
    return Menu(choice, choices=offered, name=f"{side.capitalize()} precision", elem_id=f"{page}-plan-{side}")


def buttons(running: bool) -> dict[str, gr.Button]:
    """Those of a page that answers, while it does and while it does not."""
    return {
        "send": gr.Button(visible=not running),
        "stop": gr.Button(visible=running),
        "again": gr.Button(interactive=not running),
    }
