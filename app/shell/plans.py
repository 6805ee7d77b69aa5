"""Where a plan comes from: a name, a point of the plot, a file, the address. Plain functions over the
service; what cannot be had is said in a toast, and None is returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.link import ASK, LinkError, decode
from app.service import TRIED, PlanJson, Service
from app.side import setting_named
from app.toast import inform, warn
from quept.plan import PlanError, PrecisionPlan


def named(service: Service, model: str, name: str) -> PlanJson:
    """The plan of that name; ValueError for one that is not known."""
    return service.plan_json_of(model, service.plan(model, name))


def chosen_point(service: Service, model: str, tried: list[PlanJson], identity: str) -> PlanJson | None:
    """The plan behind a point of the plot: a named plan's id is its name, a tried one's is `tried:INDEX`. A
    setting of another tool has none, which is said."""
    kind, _, index = identity.partition(":")
    if f"{kind}:" == TRIED and index.isdigit() and int(index) < len(tried):
        return tried[int(index)]
    try:
        if other := setting_named(identity):
            inform(
                f"{other.name} has no bits per layer to load, so the equaliser stays as it is. Choose it on "
                "the Chat page to read its answers.",
                title="Not a plan",
            )
            return None
        return named(service, model, identity)
    except ValueError as error:
        warn(str(error))
        return None


def uploaded(service: Service, model: str, content: bytes) -> PlanJson | None:
    """The plan in a file from the visitor's disk."""
    try:
        plan = PrecisionPlan.from_json(content, service.models[model].origin.models)
        return service.plan_json_of(model, plan)
    except PlanError as error:
        warn(f"The plan was not loaded: {error}.")
        return None


def linked(service: Service, query: Mapping[str, Any]) -> tuple[str, PlanJson]:
    """The model and the plan that an address says; where it says nothing, or nothing valid, those that the
    app begins with."""
    first = next(iter(service.models))
    model = query.get("ask", query.get("m")) if query.get("p") == ASK else query.get("m")
    model = model if model in service.models else first
    if query.get("m", model) != model and query.get("p") == ASK:
        query = {}  # the plan of a link of an earlier release, of another model than the page showed
    plan_json = None
    try:
        plan_json = decode(query, service.describe(model))
    except LinkError as error:
        warn(f"The link was not restored: {error}.")
    return model, plan_json or service.plan_json_of(model, service.start(model))
