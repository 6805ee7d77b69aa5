"""Numbers of the plan on the workbench as they come in, and its refinement: generators over the service."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import gradio as gr

from app.service import PlanJson, Service
from quept.plan import PrecisionPlan

TRIED_KEPT = 60


def measure(
    service: Service, model: str, plan_json: PlanJson, tried: list[PlanJson], visitor: str, task: str = ""
) -> Iterator[tuple]:
    """Numbers by a task (the model's first unless given) as they come in; at the end the plan joins the plot
    and the visitor's history. For the numbers, the plot, the history, and what was measured."""
    try:
        plan = service.plan_of(model, plan_json)
        state = None
        for state in service.measure(model, plan, visitor, task):
            yield state, gr.skip(), gr.skip(), gr.skip()
        if state and state["status"] in ("done", "stored"):
            tried = [other for other in tried if other != plan_json][-TRIED_KEPT + 1 :] + [plan_json]
            shown = points(service, model, tried, plan, task)
            yield state, shown, tried, {"model": model, "plan": plan_json, "task": task}
        else:  # a newer edit took over; Gradio sends the last values again at the end: not ours, then
            yield (gr.skip(),) * 4
    except Exception as error:  # whatever went wrong, the visitor gets a sentence and keeps the plan
        failed = service.state(model, PrecisionPlan.full(), task, status="error", message=str(error))
        yield failed, *(gr.skip(),) * 3
        raise


def points(
    service: Service,
    model: str,
    tried: list[PlanJson],
    current: PrecisionPlan | None = None,
    task: str = "",
) -> dict:
    """What the plot shows by a task."""
    plans = [service.plan_of(model, plan) for plan in service.of_model(model, tried)]
    return service.points(model, plans, current, task)


def refine(
    service: Service, model: str, plan_json: PlanJson, request: Mapping, visitor: str
) -> Iterator[dict]:
    """How far the refinement of the plan on the faders is; whatever goes wrong ends it with a sentence."""
    try:
        yield from service.refine(model, service.plan_of(model, plan_json), request, visitor)
    except Exception:
        yield {"status": "error", "message": "The refinement failed. Try it again."}
        raise
