"""The workbench: the plan bar, the numbers, the equaliser and the plot beside it, drawn and wired.

Dragging moves bits, memory and predicted quality in the browser alone; a release is one commit, and then a
measurement. Whatever gives a plan ends in one listener: see `_wire`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import gradio as gr

from app.components.budget import Budget, request_of
from app.components.chart import Chart, point_id
from app.components.equalizer import Equalizer
from app.components.menu import Menu
from app.components.numbers import Numbers
from app.pages.context import EVERY, LIGHT, RUNNING, WARNING, Held
from app.service import PlanJson, Service
from app.shell import plans
from app.shell.measuring import measure, points, refine
from app.shell.presets import Presets, build_presets, named_choices

DOWNLOAD_JS = """(text) => {
  if (!text) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "plan.json";
  link.click();
  URL.revokeObjectURL(link.href);
}"""


@dataclass
class Workbench:
    """The components around the pages. held: what the pages may use."""

    held: Held
    equalizer: Equalizer
    budget: Budget
    numbers: Numbers
    presets: Presets


def draw(service: Service, model: Menu) -> Workbench:
    """Draw the workbench with the model in the menu, and wire it."""
    first = model.value
    start = service.start(first)
    plan_json = service.plan_json_of(first, start)
    presets = build_presets(service, first)
    budget = Budget(elem_id="budget")
    numbers = Numbers(value=service.state(first, start), elem_id="numbers")
    with gr.Row(elem_id="bench", equal_height=False):
        with gr.Column(elem_id="bench-faders", scale=7, min_width=340):
            equalizer = Equalizer(plan_json, description=service.describe(first), elem_id="equalizer")
        with gr.Column(elem_id="bench-plot", scale=5, min_width=340):
            chart = Chart(service.points(first), elem_id="chart")
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
    held = Held(
        model=model,
        plan=gr.State(plan_json),
        tried=gr.State([]),
        chart=chart,
        query=gr.State({}),
        opened=gr.State(first),
        chosen=gr.State(None),
        measured=gr.State(None),
    )
    bench = Workbench(held, equalizer, budget, numbers, presets)
    _wire(service, bench, download, upload, text)
    _wire_budget(service, bench)
    return bench


def _wire(service: Service, bench: Workbench, download, upload, text) -> None:
    held = bench.held
    own = [bench.equalizer, held.plan, held.chosen]
    about = [held.opened, held.tried, held.chart, bench.budget, bench.presets.named]

    def loaded(model: str, plan_json: PlanJson | None) -> tuple:
        """A plan for the equaliser and the pages; None leaves them as they are."""
        if plan_json is None:
            return (gr.skip(),) * len(own)
        return plan_json, plan_json, {"model": model, "plan": plan_json}

    def committed(model: str, plan_json: PlanJson) -> tuple:
        return loaded(model, plan_json)[1:]

    def switched(model: str, plan_json: PlanJson) -> tuple:
        """Another model at that plan: a new equaliser, an empty history."""
        equalizer = Equalizer(plan_json, description=service.describe(model))
        shown = Chart(points(service, model, []), own=[]), Budget(path=service.slider(model))
        menu = gr.Dropdown(named_choices(service, model), value="")
        return equalizer, *loaded(model, plan_json)[1:], model, [], *shown, menu

    def chosen(model: str) -> tuple:
        return switched(model, service.plan_json_of(model, service.start(model)))

    def restored(request: gr.Request) -> tuple:
        query = {key: str(value)[:2000] for key, value in request.query_params.items()}
        model, plan_json = plans.linked(service, query)
        return query, model, *switched(model, plan_json)

    def pointed(model: str, tried: list, event: gr.EventData):
        return loaded(model, plans.chosen_point(service, model, tried, point_id(event)))

    def uploaded(model: str, content: bytes) -> tuple:
        return loaded(model, plans.uploaded(service, model, content))

    def named(model: str, name: str) -> tuple:
        return loaded(model, plans.named(service, model, name) if name else None)

    def measured(model: str, plan_json: PlanJson, tried: list, request: gr.Request) -> Iterator:
        yield from measure(service, model, plan_json, tried, request.session_hash)

    def then_measure(event) -> None:
        results = [bench.numbers, held.chart, held.tried, held.measured]
        event.then(measured, [held.model, held.plan, held.tried], results, **RUNNING)

    then_measure(bench.equalizer.commit(committed, [held.model, bench.equalizer], own[1:], **EVERY))
    for name, button in bench.presets.uniform.items():
        then_measure(button.click(partial(named, name=name), held.model, own, **LIGHT))
    then_measure(bench.presets.named.input(named, [held.model, bench.presets.named], own, **LIGHT))
    then_measure(held.chart.point(pointed, [held.model, held.tried], own, **WARNING))
    then_measure(upload.upload(uploaded, [held.model, upload], own, **WARNING))
    then_measure(held.model.input(chosen, held.model, [*own, *about], **LIGHT))
    blocks = gr.context.Context.root_block
    then_measure(blocks.load(restored, None, [held.query, held.model, *own, *about], **WARNING))
    download.click(
        lambda m, w: service.plan_of(m, w).to_json(service.models[m].origin.models[0]),
        [held.model, held.plan],
        text,
        **LIGHT,
    ).then(None, text, None, js=DOWNLOAD_JS)


def _wire_budget(service: Service, bench: Workbench) -> None:
    """Budgets are solved at once; a refinement is a job that its visitor ends, or leaves."""
    budget, model = bench.budget, bench.held.model

    def solved(model: str, event: gr.EventData):
        return Budget(answer=service.solve(model, request_of(event)))

    def limited(model: str, event: gr.EventData):
        return Budget(path=service.slider(model, request_of(event)))

    def refined(model: str, plan_json: PlanJson, request: gr.Request, event: gr.EventData) -> Iterator:
        for state in refine(service, model, plan_json, request_of(event), request.session_hash):
            yield Budget(refined=state)

    def stop(request: gr.Request) -> None:
        service.stop_refining(request.session_hash)

    budget.solve(solved, model, budget, **EVERY)
    budget.limit(limited, model, budget, **EVERY)
    budget.refine(refined, [model, bench.held.plan], budget, **RUNNING | {"concurrency_id": "refine"})
    budget.cancel(stop, None, None, **EVERY)
    gr.context.Context.root_block.unload(stop)
