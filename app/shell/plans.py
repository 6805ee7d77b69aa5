"""Where a plan comes from: a name, a point of the plot, a file, the address. Plain functions over the
service; what cannot be had is said in a toast, and None is returned."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from app.components.equalizer import check_plan
from app.link import ASK, LinkError, decode, encode
from app.service import NO_KL, TRIED, PlanJson, Service
from app.side import setting_named
from app.small_numbers import small_words
from app.toast import inform, warn
from quept.evaluate import Metric, TaskEstimate
from quept.plan import FULL, QUANTIZED_BITS, PlanError, PrecisionPlan
from quept.runtime import ElasticModel

DEMOS = {
    "language": ("Talk to", "chat"),
    "vision": ("Show pictures to", "classify"),
    "vision-language": ("Ask", "ask"),
}
SQUEEZED = 0.28  # of full precision: what a visitor may try first


def shelf(service: Service, model: str) -> dict[str, Any]:
    """What the plan bar offers: every plan by its name, with its bytes and its quality, and three states
    worth seeing; JSON."""
    opened = service.opened[model]
    short = {PrecisionPlan.uniform(bits).name: f"W{bits}" for bits in reversed(QUANTIZED_BITS)}
    short = {PrecisionPlan.uniform(FULL).name: "Full"} | short
    best = {plan.name for plan in opened.best}
    offered = [(short.get(name, name), "best" if name in best else "named") for name in opened.named_plans]
    return {
        "model": model,
        "first": next(iter(service.models)),
        "full": _full(opened.elastic),
        "plans": [
            _offered(service, model, name, label, "uniform" if name in short else kind)
            for (label, kind), name in zip(offered, opened.named_plans, strict=True)
        ],
        "tries": _tries(service, model),
    }


def _full(elastic: ElasticModel) -> str:
    """What full precision of this model is, in words."""
    size = f"{elastic.sizes.deploy(PrecisionPlan.full()) / 1e6:,.1f} MB"
    words = f"Full precision of this model: {size}. {elastic.provenance}"
    rotated = any(one.get("kind") == "rotation" for one in elastic.artifact.manifest.transforms)
    if rotated and len(elastic.embeddings) > 1:
        words += " Its weights are rotated before they are rounded, which takes an output head apart from the"
        words += " embeddings: where others share one table for both, it is larger at full precision."
    return words


def _offered(service: Service, model: str, name: str, label: str, kind: str) -> dict[str, Any]:
    opened, plan = service.opened[model], service.plan(model, name)
    link = encode(service.plan_json_of(model, plan))
    size = opened.elastic.sizes.deploy(plan)
    says = f"Layers: {plan.default.weights} bits" if kind == "uniform" else ""
    says += f" · embeddings: {plan.embeddings} bits" if says and opened.elastic.embeddings else ""
    about = {"name": name, "label": label, "kind": kind, "link": link, "bytes": size, "says": says}
    return about | {"quality": _quality(opened.stored(plan), opened.task.headline)}


def _quality(estimate: TaskEstimate | None, headline: str) -> str:
    """What was measured of a plan first of all, in few characters."""
    metric = estimate and estimate[headline]
    if not metric:
        return ""
    if metric.unit == "share":
        return f"{100 * metric.value:.1f} %"
    digits = 2 if metric.value >= 0.01 else 1
    return f"KL {small_words(metric.value, digits)}" if metric.value >= NO_KL else "KL 0"


def _tries(service: Service, model: str) -> list[dict[str, str]]:
    elastic = service.models[model]
    verb, tab = DEMOS[elastic.kind]
    squeezed = elastic.sizes.deploy(PrecisionPlan.full()) * SQUEEZED / 1e6
    words = f"{squeezed:.0f} MB" if squeezed >= 10 else f"{squeezed:.2g} MB"
    smaller = {"budget": words} if service.opened[model].sensitivity else {"plan": "W2"}
    return [
        {"label": f"Squeeze it to {words if 'budget' in smaller else '2 bits'}"} | smaller,
        {"label": f"{verb} 3 bits against full", "plan": "W3", "tab": tab},
        {"label": "Which layers are fragile?", "tab": "layers"},
    ]


def file_of(service: Service, model: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The plan on the faders as a file, with a name that tells what it is, and what was measured of it."""
    plan = service.plan_of(model, check_plan(request.get("plan"), service.describe(model)))
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{model} {plan.name}").strip("-")
    text = plan.to_json(service.models[model].origin.name, note=_measured(service, model, plan))
    return {"turn": request.get("turn"), "name": f"{name}.json", "text": text}


def _measured(service: Service, model: str, plan: PrecisionPlan) -> str:
    """The plan's bytes, and where it was measured its metrics and on what: shares with their 95 % interval,
    others with their standard error."""
    opened = service.opened[model]
    size = f"{opened.elastic.sizes.deploy(plan):,} bytes"
    estimate = opened.stored(plan)
    if estimate is None:
        return f"{size}; quality was not measured"
    metrics = [f"{m.name} {m.value:.4g}{_spread(m)}" for m in estimate.metrics if m.value is not None]
    return f"{size}; {', '.join(metrics)}, measured on {opened.conditions(plan)}"


def _spread(metric: Metric) -> str:
    if metric.low is None or metric.high is None:
        return ""
    if metric.unit == "share":
        return f" (95 % {metric.low:.4g} to {metric.high:.4g})"
    return f" ± {metric.high - metric.value:.2g}"


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
        return service.plan_json_of(model, service.plan(model, identity))
    except ValueError as error:
        warn(str(error))
        return None


def uploaded(service: Service, model: str, content: str | bytes) -> PlanJson | None:
    """The plan in a file from the visitor's disk; that it was made on another artifact is said."""
    try:
        plan = PrecisionPlan.from_json(content, service.models[model].origin.models)
        plan_json = service.plan_json_of(model, plan)
    except PlanError as error:
        warn(f"The plan was not loaded: {error}.")
        return None
    made_on = service.cards.get(json.loads(content).get("model"))
    if made_on and made_on is not service.cards[model]:
        inform(f"This plan was made on {made_on.title}: its quality is another one here.", title="Loaded")
    return plan_json


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
