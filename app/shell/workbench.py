"""The workbench: the plan bar, the numbers, the equaliser and the plot beside it, drawn and wired.

Dragging moves bits, memory and predicted quality in the browser alone; a release is one commit, and then a
measurement. Whatever gives a plan ends in one listener: see `_wire`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr

from app.components.budget import Budget, request_of
from app.components.chart import Chart, point_id
from app.components.equalizer import Equalizer
from app.components.menu import Menu
from app.components.numbers import Numbers
from app.components.planbar import PlanBar
from app.pages.context import EVERY, LIGHT, RUNNING, WARNING, Held
from app.service import PlanJson, Service
from app.shell import plans
from app.shell.measuring import measure, points, refine


@dataclass
class Workbench:
    """The components around the pages. held: what the pages may use."""

    held: Held
    equalizer: Equalizer
    budget: Budget
    numbers: Numbers
    planbar: PlanBar
    tasks: Menu


def draw(service: Service, model: Menu) -> Workbench:
    """Draw the workbench with the model in the menu, and wire it."""
    first = model.value
    start = service.start(first)
    plan_json = service.plan_json_of(first, start)
    planbar = PlanBar(plans=plans.shelf(service, first), elem_id="planbar")
    budget = Budget(elem_id="budget")
    numbers = Numbers(value=service.state(first, start), elem_id="numbers")
    with gr.Row(elem_id="bench", equal_height=False):
        with gr.Column(elem_id="bench-faders", scale=7, min_width=340):
            about = {"description": service.describe(first), "folded": True}
            equalizer = Equalizer(plan_json, **about, elem_id="equalizer")
        with gr.Column(elem_id="bench-plot", scale=5, min_width=340):
            tasks = Menu(**_tasks(service, first), elem_id="task")
            chart = Chart(elem_id="chart")  # its points come when the page is opened
    held = Held(
        model=model,
        task=gr.State(""),
        plan=gr.State(plan_json),
        tried=gr.State([]),
        chart=chart,
        query=gr.State({}),
        opened=gr.State(first),
        chosen=gr.State(None),
        measured=gr.State(None),
    )
    bench = Workbench(held, equalizer, budget, numbers, planbar, tasks)
    _wire(service, bench)
    _wire_budget(service, bench)
    return bench


def _tasks(service: Service, model: str) -> dict:
    """The menu of what plans of a model are measured by; none is shown where there is no choice."""
    offered = service.tasks(model)
    return {"value": offered[0][1], "choices": offered, "visible": len(offered) > 1, "name": "Quality by"}


def _wire(service: Service, bench: Workbench) -> None:
    held, planbar, drawn = bench.held, bench.planbar, bench.held.model.value
    own = [bench.equalizer, held.plan, held.chosen]
    about = [held.opened, held.tried, held.chart, bench.budget, planbar, bench.tasks, held.task]

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
        bar = PlanBar(plans=plans.shelf(service, model))
        menu = Menu(**_tasks(service, model))
        return equalizer, *loaded(model, plan_json)[1:], model, [], *shown, bar, menu, ""

    def opening(model: str):
        """Until its numbers come, seconds for one that waits, none of another model's are shown."""
        return {"status": "opening", "message": service.cards[model].title, "model": model}

    def chosen(model: str) -> tuple:
        return switched(model, service.plan_json_of(model, service.start(model)))

    def restored(request: gr.Request) -> tuple:
        query = {key: str(value)[:2000] for key, value in request.query_params.items()}
        model, plan_json = plans.linked(service, query)
        shown = switched(model, plan_json)
        if model == drawn and plan_json == held.plan.value:  # as drawn: what was dragged meanwhile stays
            shown = gr.skip(), gr.skip(), *shown[2:]
        elif model == drawn:
            shown = plan_json, *shown[1:]
        return query, model, *shown

    def pointed(model: str, tried: list, event: gr.EventData):
        return loaded(model, plans.chosen_point(service, model, tried, point_id(event)))

    def travelled(event: gr.EventData) -> tuple:
        query = request_of(event).get("query")
        query = {key: str(value)[:2000] for key, value in query.items()} if isinstance(query, dict) else {}
        model, plan_json = plans.linked(service, query)
        return model, *switched(model, plan_json)

    def uploaded(model: str, event: gr.EventData) -> tuple:
        return loaded(model, plans.uploaded(service, model, str(request_of(event).get("text"))))

    def downloaded(model: str, event: gr.EventData):
        return PlanBar(file=plans.file_of(service, model, request_of(event)))

    def retasked(model: str, plan_json: PlanJson, tried: list, task: str) -> tuple:
        """Another task: what is known by it already."""
        plan = service.plan_of(model, plan_json)
        return task, service.state(model, plan, task), points(service, model, tried, plan, task)

    def measured(
        model: str, plan_json: PlanJson, tried: list, task: str, request: gr.Request
    ) -> Iterator[tuple]:
        yield from measure(service, model, plan_json, tried, request.session_hash, task)

    def then_measure(event) -> None:
        results = [bench.numbers, held.chart, held.tried, held.measured]
        event.then(measured, [held.opened, held.plan, held.tried, held.task], results, **RUNNING)

    # Through the queue, all of them: Gradio's browser side hears of changed states there alone.
    every = WARNING | {"trigger_mode": "multiple"}
    then_measure(bench.equalizer.commit(committed, [held.opened, bench.equalizer], own[1:], **every))
    then_measure(held.chart.point(pointed, [held.opened, held.tried], own, **WARNING))
    then_measure(planbar.upload(uploaded, held.opened, own, **WARNING))
    then_measure(planbar.travel(travelled, None, [held.model, *own, *about], **WARNING))
    now, answered = [held.opened, held.plan, held.tried], [held.task, bench.numbers, held.chart]
    then_measure(bench.tasks.input(retasked, [*now, bench.tasks], answered, **WARNING))
    planbar.download(downloaded, held.opened, planbar, **EVERY)
    held.model.input(opening, held.model, bench.numbers, **LIGHT)
    then_measure(held.model.input(chosen, held.model, [*own, *about], **WARNING))
    blocks = gr.context.Context.root_block
    then_measure(blocks.load(restored, None, [held.query, held.model, *own, *about], **WARNING))


def _wire_budget(service: Service, bench: Workbench) -> None:
    """Budgets are solved at once; a refinement is a job that its visitor ends, or leaves."""
    budget, model = bench.budget, bench.held.opened

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
