"""The Compare page: two plans layer by layer, what they weigh and cost; and all measured plans as a table."""

from __future__ import annotations

import time
from collections.abc import Mapping

import gradio as gr

from app.budget import sentence
from app.components.budget import request_of
from app.components.compare import Compare
from app.components.equalizer import check_plan
from app.components.plan_table import PlanTable
from app.pages.context import EVERY, LIGHT, Page, PageContext
from app.service import TRIED, PlanJson, Service
from app.side import EQUALIZER
from quept.plan import PrecisionPlan

SAVE_JS = """(text, model) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  link.download = `${model}-measured.csv`.replace(/[^\\w.-]+/g, "-");
  link.click();
  URL.revokeObjectURL(link.href);
}"""


def pair(service: Service, model: str, tried: list[PlanJson], request: Mapping, task: str = "") -> dict:
    """Two plans beside each other, as the menus name them, by a task (the model's first unless given); why
    not, as a sentence, if one is not known."""
    answer = {"turn": request.get("turn")}
    try:
        sides = (_named_by(service, model, tried, request.get(side), request.get("plan")) for side in "ab")
        both = zip("ab", sides, strict=True)
        return answer | {key: service.compared(model, plan, task) for key, plan in both}
    except ValueError as error:
        return answer | {"error": sentence(error)}


def _named_by(
    service: Service, model: str, tried: list[PlanJson], choice: object, own: object
) -> PrecisionPlan:
    """The plan behind a value of the menus; `own` is what the browser says is on the faders."""
    kind, _, index = str(choice).partition(":")
    if choice == EQUALIZER:
        return service.plan_of(model, check_plan(own, service.describe(model)))
    if f"{kind}:" == TRIED and index.isdigit() and int(index) < len(tried):
        return service.plan_of(model, tried[int(index)])
    return service.plan(model, str(choice))


def comparable(service: Service, model: str, tried: list[PlanJson], task: str = "") -> dict:
    """What there is to choose from; another one each time."""
    plans = [service.plan_of(model, plan_json) for plan_json in service.of_model(model, tried)]
    return service.comparable(model, plans, task) | {"stamp": time.time()}


def build(context: PageContext) -> None:
    """Draw the page and wire it."""
    service, first = context.service, context.first
    compare = Compare(plans=service.comparable(first), elem_id="compare")
    PlanTable(elem_id="plan-table")
    save = gr.Button("Download what was measured (CSV)", size="sm", elem_id="measured-download")
    table = gr.Textbox(visible=False)
    saving = save.click(service.measured_table, [context.model, context.task], table, **LIGHT)
    saving.then(None, [table, context.bench.model], None, js=SAVE_JS, **LIGHT)

    def paired(model: str, tried: list, task: str, event: gr.EventData):
        return Compare(answer=pair(service, model, tried, request_of(event), task))

    def offered(model: str, tried: list, task: str):
        return Compare(plans=comparable(service, model, tried, task))

    about = [context.model, context.tried, context.task]
    compare.compare(paired, about, compare, **EVERY)
    for happened in (context.on_model, context.on_measured):
        happened(offered, about, compare, **LIGHT)


PAGE = Page("compare", "Compare", build)
