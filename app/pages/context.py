"""What a page of the app is: an entry of the table in `app.pages`, drawn over one `PageContext`.

A page's module has handlers, plain functions and generators over the context and values, and a build function
that draws and wires. Its style is the file of its id beside it, `ask.css`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from app.conversation import CachePool, Running
from app.pictures import Album
from app.service import OpenModel, Service
from quept.runtime import ElasticModel

# How handlers run: LIGHT at once; EVERY, all of them, however fast they come; WARNING with words for the
# visitor, which travel through the queue only; RUNNING the model.
LIGHT = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
EVERY = LIGHT | {"trigger_mode": "multiple"}
WARNING = LIGHT | {"queue": True, "concurrency_limit": 16}
RUNNING = EVERY | {"queue": True, "concurrency_id": "measure", "concurrency_limit": 16}


@dataclass
class PageContext:
    """What all visitors of a page share, and what is drawn around it.

    held: what the page keeps of each model that it is for, by the model's name; running, pool, album: the
    answers under way, the key-value caches kept between turns, the pictures that visitors gave. model, plan:
    the menu at the top and the visitor's plan of that model, as JSON; query: what the address said when the
    page was opened; tab: the page's own; drawn: what the build functions of the pages before gave, by id.
    """

    service: Service
    held: dict[str, Any] = field(default_factory=dict)
    running: Running = field(default_factory=Running)
    pool: CachePool = field(default_factory=CachePool)
    album: Album = field(default_factory=Album)
    model: gr.Dropdown | gr.State | None = None
    plan: gr.State | None = None
    query: gr.State | None = None
    tab: gr.Tab | None = None
    drawn: dict[str, Any] = field(default_factory=dict)

    def forget(self, visitor: str) -> list[Any]:
        """The visitor has left: their answers and conversations go, and their pictures, which it returns."""
        self.running.stop(visitor)
        self.pool.forget(visitor)
        return self.album.forget(visitor)


@dataclass(frozen=True)
class Page:
    """One entry of the table. build: draws the page inside its tab; kinds, needs: of the models it is for,
    all where there are none, and what else such a model must have (a page for none that is open is left
    out); holds: what it keeps of one, see PageContext; head: what it adds to the document's head; follows: it
    shows the model of the menu at the top, so it is out of reach while that is one that it is not for."""

    id: str
    label: str
    build: Callable[[PageContext], Any]
    kinds: tuple[str, ...] = ()
    needs: Callable[[ElasticModel], bool] = lambda elastic: True
    holds: Callable[[OpenModel], Any] = lambda opened: None
    head: str = ""
    follows: bool = False

    @property
    def css(self) -> str:
        file = Path(__file__).parent / f"{self.id}.css"
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def shows(self, elastic: ElasticModel) -> bool:
        return (not self.kinds or elastic.kind in self.kinds) and self.needs(elastic)

    def models(self, service: Service) -> list[str]:
        """Names of the models that it is for."""
        return [name for name, elastic in service.models.items() if self.shows(elastic)]

    def context(self, service: Service, **drawn) -> PageContext:
        held = {name: self.holds(service.opened[name]) for name in self.models(service)}
        return PageContext(service, held, **drawn)


def model_menu(service: Service, names: list[str], elem_id: str) -> gr.Dropdown:
    """The menu of those models, hidden where there is nothing to choose."""
    return gr.Dropdown(
        [(service.models[name].title, name) for name in names],
        value=names[0],
        visible=len(names) > 1,
        show_label=False,
        container=False,
        filterable=False,
        elem_id=elem_id,
        elem_classes="model-menu",
        min_width=220,
    )


def precision_menu(page: str, side: str, offered: list[tuple[str, str]], choice: str) -> gr.Dropdown:
    """The menu of precisions of one side of a page, "left" or "right"."""
    return gr.Dropdown(
        offered,
        value=choice,
        label=f"{side.capitalize()} precision",
        elem_id=f"{page}-plan-{side}",
        filterable=False,
    )


def buttons(running: bool) -> dict[str, gr.Button]:
    """Those of a page that answers, while it does and while it does not."""
    return {
        "send": gr.Button(visible=not running),
        "stop": gr.Button(visible=running),
        "again": gr.Button(interactive=not running),
    }
