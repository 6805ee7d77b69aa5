"""The Export page: the plan as a file of each engine, side by side; the file, and how to run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import gradio as gr

from app.budget import sentence
from app.components.budget import request_of
from app.components.exports import ExportTable
from app.exports import offers
from app.pages.context import EVERY, LIGHT, RUNNING, Page, PageContext
from app.payloads import NOT_UNDERSTOOD
from app.service import PlanJson, Service
from quept.export import EXPORTERS

JOB = RUNNING | {"concurrency_id": "export"}
QUESTION, ANSWER = "Why is the sky blue?", 32  # put to llama.cpp, and how many tokens it may answer
TOKENS = 128  # of the text on which llama.cpp and the view are compared


def offered(service: Service, model: str, plan_json: PlanJson) -> dict[str, Any]:
    """What each format makes of the visitor's plan."""
    plan = service.plan_of(model, plan_json)
    rows = offers(service.opened[model], plan, lambda near: service.plan_json_of(model, near))
    return {"model": model, "rows": rows, "llama": service.llama.missing}


def make(service: Service, model: str, plan_json: PlanJson, request: Mapping) -> Iterator[dict[str, Any]]:
    """The file of the visitor's plan in the making; whatever goes wrong ends it with a sentence."""
    name = request.get("format")
    try:
        if name not in EXPORTERS:
            raise ValueError(NOT_UNDERSTOOD)
        plan = service.plan_of(model, plan_json)
        for state in service.exports.make(service.opened[model], plan, name, lambda: service.gate):
            if "path" in state:
                state["path"] = quote((service.exports.folder / state["path"]).as_posix())
            yield state
    except ValueError as error:
        yield {"format": str(name)[:40], "status": "error", "message": sentence(error)}
    except Exception:
        yield {"format": name, "status": "error", "message": "The file could not be made. Try it again."}
        raise


def run(service: Service, model: str, plan_json: PlanJson) -> Iterator[dict[str, str]]:
    """How the GGUF file of the visitor's plan runs in llama.cpp here: its size and measured tokens/s, then
    how it answers, then how far it is from our view."""
    opened, plan = service.opened[model], service.plan_of(model, plan_json)
    path = service.exports.path(opened, plan, "gguf")
    if path is None:
        yield {"words": "The plan has changed, or its file has gone: make it again."}
        return
    llama = service.llama
    try:
        words = llama.caption(path)
        words = f"{words[0].upper()}{words[1:]}, measured on this server."
        yield {"words": words, "next": "Asking it a question"}
        answer = "".join(llama.answer(path, [{"role": "user", "content": QUESTION}], ANSWER))
        words += f" Asked “{QUESTION}” it begins: “{' '.join(answer.split())} …”"
        yield {"words": words, "next": "Comparing it with our view"}
        ids = opened.sample.windows(opened.elastic).ids[0, :TOKENS]
        yield {"words": f"{words} {llama.agreement(opened.elastic, plan, path, ids, service.gate)}"}
    except RuntimeError as error:
        yield {"words": sentence(error)}


def build(context: PageContext) -> None:
    """Draw the page and wire it."""
    service = context.service
    gr.set_static_paths([service.exports.folder])
    table = ExportTable(elem_id="exports")
    seen = gr.State(False)  # until it is looked at nothing is weighed

    def shown(model: str, plan_json: PlanJson):
        return ExportTable(offers=offered(service, model, plan_json)), True

    def changed(model: str, plan_json: PlanJson, seen: bool, query: dict):
        return shown(model, plan_json) if seen or query.get("p") == PAGE.id else (gr.skip(), gr.skip())

    def made(model: str, plan_json: PlanJson, event: gr.EventData) -> Iterator:
        for state in make(service, model, plan_json, request_of(event)):
            yield ExportTable(made=state)

    def ran(model: str, plan_json: PlanJson) -> Iterator:
        for state in run(service, model, plan_json):
            yield ExportTable(ran=state)

    about = [context.model, context.plan]
    context.tab.select(shown, about, [table, seen], **LIGHT)
    context.on_plan(changed, [*about, seen, context.query], [table, seen], **EVERY)
    table.make(made, about, table, **JOB)
    table.run(ran, about, table, **JOB)


PAGE = Page("export", "Export", build)
