"""The Explore page: drag bits, see memory at once, a prediction while dragging, a measurement after release.

`build` draws and wires; the handlers below it are plain functions and generators over the service.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import gradio as gr

from app.budget import sentence
from app.components.budget import Budget, request_of
from app.components.chart import Chart, point_id
from app.components.compare import Compare
from app.components.equalizer import Equalizer, check_plan
from app.components.heatmap import HeatMap
from app.components.numbers import Numbers
from app.link import CLASSIFY, LinkError, decode
from app.pages.context import EVERY, LIGHT, RUNNING, WARNING, Page, PageContext
from app.pages.presets import Presets, build_presets, named_choices
from app.service import TRIED, PlanJson, Service
from app.side import EQUALIZER, setting_named
from app.toast import inform, warn
from quept.plan import PlanError, PrecisionPlan

TRIED_KEPT = 60
DOWNLOAD_JS = """(text) => {
  if (!text) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "plan.json";
  link.click();
  URL.revokeObjectURL(link.href);
}"""


@dataclass
class Explore:
    """The page's components that others listen to. `plan` holds the visitor's plan as JSON, `model` the
    chosen model's name."""

    model: gr.Dropdown
    plan: gr.State
    tried: gr.State
    equalizer: Equalizer
    budget: Budget
    numbers: Numbers
    chart: Chart
    heatmap: HeatMap
    compare: Compare
    tab: gr.Tab | None = None


def build(context: PageContext) -> Explore:
    """Draw the page and wire it."""
    service = context.service
    first = next(iter(service.models))
    start = service.start(first)
    tried = gr.State([])
    numbers = Numbers(value=service.state(first, start), elem_id="numbers")
    presets = build_presets(service, first)
    budget = Budget(path=service.slider(first), elem_id="budget")
    equalizer = Equalizer(
        service.plan_json_of(first, start), description=service.describe(first), elem_id="equalizer"
    )
    with gr.Row(elem_id="plan-files"):
        download = gr.Button("Download plan", size="sm", elem_id="plan-download", min_width=120)
        upload = gr.UploadButton(
            "Upload plan",
            file_types=[".json"],
            type="binary",
            size="sm",
            elem_id="plan-upload",
            min_width=120,
        )
    text = gr.Textbox(visible=False)
    chart = Chart(service.points(first), elem_id="chart")
    heatmap = HeatMap(service.opened[first].heat, elem_id="heatmap")
    compare = Compare(plans=service.comparable(first), elem_id="compare")
    widgets = (equalizer, budget, numbers, chart, heatmap, compare)
    page = Explore(context.model, context.plan, tried, *widgets, context.tab)
    _wire(service, page, presets, download, upload, text)
    _wire_budget(service, page)
    return page


def _wire(service: Service, page: Explore, presets: Presets, download, upload, text) -> None:
    def measured(model: str, plan_json: PlanJson, tried: list, request: gr.Request) -> Iterator:
        yield from measure(service, model, plan_json, tried, request.session_hash)

    outputs = [page.numbers, page.chart, page.compare, page.tried]
    inputs = [page.model, page.plan, page.tried]

    def then_measure(event) -> None:
        event.then(measured, inputs, outputs, **RUNNING)

    then_measure(page.equalizer.commit(lambda plan_json: plan_json, page.equalizer, page.plan, **EVERY))
    loads = [page.equalizer, page.plan]
    for name, button in presets.uniform.items():
        then_measure(button.click(partial(named_plan, service, name=name), page.model, loads, **LIGHT))
    named = presets.named
    then_measure(named.input(lambda m, n: named_plan(service, m, n), [page.model, named], loads, **LIGHT))

    def pointed(model: str, tried: list, event: gr.EventData):
        return chosen_point(service, model, tried, point_id(event))

    then_measure(page.chart.point(pointed, [page.model, page.tried], loads, **WARNING))
    then_measure(upload.upload(lambda m, f: uploaded(service, m, f), [page.model, upload], loads, **WARNING))
    download.click(
        lambda m, w: service.plan_of(m, w).to_json(service.models[m].origin.models[0]),
        [page.model, page.plan],
        text,
        **LIGHT,
    ).then(None, text, None, js=DOWNLOAD_JS)

    def paired(model: str, tried: list, event: gr.EventData):
        return Compare(answer=pair(service, model, tried, request_of(event)))

    page.compare.compare(paired, [page.model, page.tried], page.compare, **EVERY)

    about = [page.chart, page.budget, page.heatmap, page.compare]  # what belongs to a model, beside its plan

    def switched(model: str):
        return [*switch(service, model), gr.Dropdown(named_choices(service, model), value="")]

    switching = [page.equalizer, page.plan, page.tried, *about, named]
    then_measure(page.model.input(switched, page.model, switching, **LIGHT))

    def restored(request: gr.Request):
        return restore(service, dict(request.query_params))

    blocks = gr.context.Context.root_block
    shown = [page.model, page.equalizer, page.plan, *about]
    then_measure(blocks.load(restored, None, shown, **WARNING))


def _wire_budget(service: Service, page: Explore) -> None:
    """Budgets are solved at once; a refinement is a job that its visitor ends, or leaves."""

    def solved(model: str, event: gr.EventData):
        return Budget(answer=service.solve(model, request_of(event)))

    def limited(model: str, event: gr.EventData):
        return Budget(path=service.slider(model, request_of(event)))

    def refined(model: str, plan_json: PlanJson, request: gr.Request, event: gr.EventData) -> Iterator:
        for state in refine(service, model, plan_json, request_of(event), request.session_hash):
            yield Budget(refined=state)

    def stop(request: gr.Request) -> None:
        service.stop_refining(request.session_hash)

    page.budget.solve(solved, page.model, page.budget, **EVERY)
    page.budget.limit(limited, page.model, page.budget, **EVERY)
    job = RUNNING | {"concurrency_id": "refine"}
    page.budget.refine(refined, [page.model, page.plan], page.budget, **job)
    page.budget.cancel(stop, None, None, **EVERY)
    gr.context.Context.root_block.unload(stop)


def measure(
    service: Service, model: str, plan_json: PlanJson, tried: list[PlanJson], visitor: str
) -> Iterator:
    """Numbers as they come in; at the end the plan joins the chart and the visitor's history."""
    try:
        plan = service.plan_of(model, plan_json)
        state = None
        for state in service.measure(model, plan, visitor):
            yield state, gr.skip(), gr.skip(), gr.skip()
        if state and state["status"] in ("done", "stored"):
            tried = [other for other in tried if other != plan_json][-TRIED_KEPT + 1 :] + [plan_json]
            plans = _comparable(service, model, tried)
            yield state, _chart(service, model, tried, plan), Compare(plans=plans), tried
        else:  # a newer edit took over; Gradio sends the last values again at the end: not ours, then
            yield gr.skip(), gr.skip(), gr.skip(), gr.skip()
    except Exception as error:  # whatever went wrong, the visitor gets a sentence and keeps the plan
        yield (
            service.state(model, PrecisionPlan.full(), status="error", message=str(error)),
            gr.skip(),
            gr.skip(),
            gr.skip(),
        )
        raise


def named_plan(service: Service, model: str, name: str):
    """A preset: for the equaliser and the plan."""
    if not name:
        return gr.skip(), gr.skip()
    plan_json = service.plan_json_of(model, service.plan(model, name))
    return plan_json, plan_json


def chosen_point(service: Service, model: str, tried: list[PlanJson], identity: str):
    """The plan behind a point of the chart: a named plan's id is its name, a tried one's is `tried:INDEX`. A
    setting of another tool has none, which is said."""
    kind, _, index = identity.partition(":")
    if kind == "tried" and index.isdigit() and int(index) < len(tried):
        return tried[int(index)], tried[int(index)]
    try:
        if other := setting_named(identity):
            inform(
                f"{other.name} has no bits per layer to load, so the equaliser stays as it is. Choose it on "
                "the Chat page to read its answers.",
                title="Not a plan",
            )
            return gr.skip(), gr.skip()
        return named_plan(service, model, identity)
    except ValueError as error:
        warn(str(error))
        return gr.skip(), gr.skip()


def refine(
    service: Service, model: str, plan_json: PlanJson, request: Mapping, visitor: str
) -> Iterator[dict]:
    """How far the refinement of the plan on the faders is; whatever goes wrong ends it in words."""
    try:
        yield from service.refine(model, service.plan_of(model, plan_json), request, visitor)
    except Exception:
        yield {"status": "error", "message": "The refinement failed. Try it again."}
        raise


def pair(service: Service, model: str, tried: list[PlanJson], request: Mapping) -> dict:
    """Two plans beside each other, as the menus name them; why not, in words, if one is not known."""
    answer = {"turn": request.get("turn")}
    try:
        sides = (_named_by(service, model, tried, request.get(side), request.get("plan")) for side in "ab")
        return answer | {key: service.compared(model, plan) for key, plan in zip("ab", sides, strict=True)}
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


def uploaded(service: Service, model: str, content: bytes):
    """A plan file from the visitor's disk."""
    try:
        plan_json = service.plan_json_of(
            model, PrecisionPlan.from_json(content, service.models[model].origin.models)
        )
    except PlanError as error:
        warn(f"The plan was not loaded: {error}.")
        return gr.skip(), gr.skip()
    return plan_json, plan_json


def switch(service: Service, model: str):
    """Another of the operator's models: a new equaliser at the starting plan, an empty history."""
    plan_json = service.plan_json_of(model, service.start(model))
    equalizer = Equalizer(plan_json, description=service.describe(model))
    return equalizer, plan_json, [], *_about(service, model)


def restore(service: Service, query: dict):
    """What the page's address says: a model and a plan. Where it says nothing, or nothing valid, the page
    stays as it was drawn."""
    first = next(iter(service.models))
    if query.get("p") == CLASSIFY and query.get("m") != first:
        query = {}  # what it says is of the Classify page
    model = query.get("m") if query.get("m") in service.models else first
    plan_json = None
    try:
        plan_json = decode(query, service.describe(model))
    except LinkError as error:
        warn(f"The link was not restored: {error}.")
    if plan_json is None and model == first:
        return gr.skip(), gr.skip(), gr.skip(), _chart(service, model, []), gr.skip(), gr.skip(), gr.skip()
    plan_json = plan_json or service.plan_json_of(model, service.start(model))
    equalizer = Equalizer(plan_json, description=service.describe(model))
    return model, equalizer, plan_json, *_about(service, model)


def _about(service: Service, model: str) -> tuple:
    """What the page shows of a model beside its plan, before anything was tried."""
    return (
        _chart(service, model, []),
        Budget(path=service.slider(model)),
        service.opened[model].heat,
        Compare(plans=_comparable(service, model, [])),
    )


def _comparable(service: Service, model: str, tried: list[PlanJson]) -> dict:
    plans = [service.plan_of(model, plan_json) for plan_json in tried]
    return service.comparable(model, plans) | {"stamp": time.time()}


def _chart(service: Service, model: str, tried: list[PlanJson], current: PrecisionPlan | None = None) -> dict:
    return service.points(model, [service.plan_of(model, plan_json) for plan_json in tried], current)


PAGE = Page("explore", "Explore", build)
