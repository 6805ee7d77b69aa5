"""The Classify page: pictures, and what full precision and the visitor's plan answer to them, side by side.

What is said of a picture is in `app.pages.classify_answers`; here the page is drawn and wired.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import gradio as gr

from app.components.budget import request_of
from app.components.flips import Flips
from app.components.menu import Menu
from app.components.picture_input import PictureInput
from app.components.pictures import Pictures
from app.components.side_status import SideStatus
from app.link import CLASSIFY
from app.open_model import OpenModel
from app.pages.classify_answers import (
    INPUT,
    SIDES,
    choices,
    enter,
    forget,
    given,
    heading,
    look,
    own_pictures,
    regions,
    results,
    row,
    starting,
    switch,
)
from app.pages.context import EVERY, LIGHT, RUNNING, WARNING, Page, PageContext, precision_menu
from app.pictures import Classifier
from app.service import PlanJson
from quept import zoo

logger = logging.getLogger(__name__)


def _classifier(opened: OpenModel) -> Classifier:
    """Over the labelled pictures beside the model; photographs of packages are examples where there are
    none."""
    vision = opened.elastic.vision
    if vision.images:
        return Classifier(opened.elastic, opened.task.images)
    try:
        return Classifier(opened.elastic, None, zoo.photos() if vision.of_photographs else ())
    except zoo.SourceError as error:
        logger.warning("there are no example photographs: %s", error)
        return Classifier(opened.elastic, None)


@dataclass
class ClassifyPage:
    """The page's components."""

    title: gr.Markdown
    input: PictureInput
    pictures: Pictures
    plan_left: Menu
    plan_right: Menu
    status_left: SideStatus
    status_right: SideStatus
    flips: Flips
    changed: Pictures
    regions: gr.Button
    regions_left: gr.HTML
    regions_right: gr.HTML


def build(context: PageContext) -> ClassifyPage:
    """Draw the page and wire it."""
    service, begins, first = context.service, context.begins, context.model.value
    offered = choices(service, first) if begins else [(choice, choice) for choice in starting()]
    sides = {}
    with gr.Column(elem_id=CLASSIFY):
        title = gr.Markdown(heading(service, first) if begins else "", elem_id="classify-title")
        with gr.Row(elem_id="classify-pictures-row", equal_height=False):
            picture = PictureInput(
                sources=["upload", "webcam", "clipboard"],
                label="Your picture",
                show_label=False,
                height=188,
                placeholder="Drop a picture, paste it,\nor click to choose one",
                buttons=[],
                scale=0,
                min_width=220,
                elem_id=INPUT,
            )
            pictures = Pictures(
                row(context, first) if begins else None, elem_id="classify-pictures", scale=1, min_width=300
            )
        with gr.Row(elem_id="classify-middle", equal_height=False):
            with gr.Row(elem_id="classify-sides", equal_height=False):
                for side, choice in zip(SIDES, starting(), strict=True):
                    with gr.Column(min_width=240, elem_classes="classify-side"):
                        sides[f"plan_{side}"] = precision_menu(CLASSIFY, side, offered, choice)
                        sides[f"status_{side}"] = SideStatus(
                            {"state": "idle", "words": "Choose a picture"},
                            elem_id=f"classify-status-{side}",
                        )
                        sides[f"regions_{side}"] = gr.HTML(
                            elem_id=f"classify-regions-{side}", elem_classes="classify-regions"
                        )
            with gr.Column(min_width=340, elem_id="classify-changes"):
                sides["regions"] = gr.Button(
                    "Which region decides?", size="sm", variant="secondary", elem_id="classify-regions"
                )
                changed = Pictures(
                    {"title": "Answers that the plan changes", "items": [], "empty": "Measuring…"},
                    elem_id="classify-changed",
                )
                flips = Flips({"rows": [], "empty": "Measuring…"}, elem_id="classify-flips")
    page = ClassifyPage(title=title, input=picture, pictures=pictures, flips=flips, changed=changed, **sides)
    _wire(context, page)
    return page


def _wire(context: PageContext, page: ClassifyPage) -> None:
    both = [page.plan_left, page.plan_right]

    def looked(model: str, left: str, right: str, request: gr.Request, event: gr.EventData):
        if model not in context.held:
            return (gr.skip(),) * 6
        asked = request_of(event)
        answered = look(context, model, (left, right), asked, request.session_hash)
        return *answered, asked.get("id"), "", ""  # what was shown of regions is of another picture or plan

    def decided(model: str, left: str, right: str, chosen: str | None, plan: PlanJson, request: gr.Request):
        if model not in context.held:
            return (gr.skip(),) * 2
        return regions(context, model, (left, right), chosen, plan, request.session_hash)

    def uploaded(model: str, path: str | None, request: gr.Request) -> Iterator:
        yield from given(context, model, path, request.session_hash)

    def switched(query: Mapping | None, model: str, request: gr.Request):
        return (
            switch(context, query, model, request.session_hash) if model in context.held else (gr.skip(),) * 4
        )

    def measured(model: str, plan_json: PlanJson):
        return results(context, model, plan_json) if model in context.held else (gr.skip(),) * 2

    def entered(query: Mapping | None, known: bool, model: str, request: gr.Request):
        shown = enter(context, None if known else query, model, request.session_hash)
        if not known and model in context.held and "items" not in shown:
            shown = row(context, model, request.session_hash)
        return shown, True

    def again():
        return Pictures(again=time.time())

    def left(request: gr.Request) -> None:
        forget(context, request.session_hash)

    chosen, maps, known = gr.State(None), [page.regions_left, page.regions_right], gr.State(False)
    answers = [page.pictures, page.status_left, page.status_right, chosen, *maps]

    def compared(model: str, plan_json: PlanJson, request: gr.Request):
        known = model in context.held
        return own_pictures(context, model, plan_json, request.session_hash) if known else gr.skip()

    looking = page.pictures.look(looked, [context.model, *both], answers, **EVERY)
    looking.then(compared, [context.model, context.plan], context.chart, **LIGHT)
    page.regions.click(decided, [context.model, *both, chosen, context.plan], maps, **RUNNING)
    gr.on([menu.input for menu in both], again, None, page.pictures, **LIGHT)
    page.input.upload(uploaded, [context.model, page.input], [page.input, page.pictures], **EVERY | WARNING)
    context.on_model(switched, [context.query, context.model], [*both, page.pictures, page.title], **LIGHT)
    context.on_measured(measured, [context.model, context.plan], [page.flips, page.changed], **LIGHT)
    context.tab.select(entered, [context.query, known, context.model], [page.pictures, known], **WARNING)
    gr.context.Context.root_block.unload(left)


PAGE = Page(
    CLASSIFY,
    "Classify",
    build,
    kinds=("vision",),
    needs=lambda card: card.labelled,
    lacks="Classify is for models whose classes have names",
    holds=_classifier,
)
