"""The Chat page's control of models whose tokens are routed: an average of bits per token, what it costs, and
which layers get them. Letting go of the slider makes the average the right side's precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from app.components.menu import Menu
from app.components.routing import Routing
from app.pages.context import LIGHT, PageContext
from quept.allocate.solve.constraints import megabytes
from quept.engines import named_settings
from quept.numerics.nested import DEPTHS
from quept.plan import FULL, PrecisionPlan
from quept.runtime import ElasticModel

FIRST = 3.5  # bits


@dataclass(frozen=True)
class Averages:
    """Its components."""

    box: gr.Accordion
    slider: gr.Slider
    shown: Routing


def draw(context: PageContext) -> Averages:
    """Draw it; it is there only while the model is one that routes."""
    value = routing(context, context.first, FIRST)
    with gr.Accordion("Bits per token", open=True, visible=bool(value), elem_id="chat-averages") as box:
        slider = gr.Slider(
            2.1,
            7.9,
            FIRST,
            step=0.1,
            label="Average bits per token",
            info="Routers choose 2, 4, 6 or 8 bits for each token in each layer; the right side answers at "
            "this average",
            elem_id="chat-average",
        )
        shown = Routing(value, elem_id="chat-routing")
    return Averages(box, slider, shown)


def wire(
    context: PageContext, parts: Averages, menu: Menu, offered: Callable[[str], list], *after: Any
) -> None:
    """menu: of the right side; offered(model): its entries; after: what a choice in it leads to, as a
    listener takes it."""

    def on_release(model: str, average: float) -> list:
        word = f"routed:{average:g}"
        entries = offered(model)
        if word not in [value for _, value in entries]:
            entries = [*entries, (named_settings()[word], word)]
        return [Menu(choices=entries, value=word), routing(context, model, average)]

    def on_model(model: str, average: float) -> list:
        value = routing(context, model, average)
        return [gr.Accordion(visible=bool(value)), value]

    asked = [context.model, parts.slider]
    parts.slider.release(on_release, asked, [menu, parts.shown], **LIGHT).then(*after, **LIGHT)
    context.on_model(on_model, asked, [parts.box, parts.shown], **LIGHT)


def routing(context: PageContext, model: str, average: float) -> dict:
    """What an average costs and which layers get its bits, as `Routing` shows it; {} for a model whose tokens
    are not routed."""
    elastic = context.service.models[model] if model in context.held else None
    routes = elastic and elastic.artifact.engine.routes
    if not routes:
        return {}
    at = int((routes.averages - average).abs().argmin())
    curve = zip(routes.averages.tolist(), routes.kl.tolist(), strict=True)
    bits = dict(zip(routes.routers, routes.bits[at].tolist(), strict=True))
    quality = elastic.artifact.manifest.quality
    return {
        "average": round(float(average), 1),
        "kl": float(routes.kl[at]),
        "curve": [[round(b, 1), kl] for b, kl in curve],
        "depths": [[b, quality[f"W{b}"]["kl"]] for b in DEPTHS],
        "layers": [[name, round(b, 2)] for name, b in bits.items()],
        "read": megabytes(round(_read(elastic, {n: bits[leader] for n, leader in routes.leaders.items()}))),
        "kept": megabytes(elastic.sizes.deploy(PrecisionPlan.uniform(f"routed:{average:g}"))),
    }


def _read(elastic: ElasticModel, bits: Mapping[str, float]) -> float:
    """Bytes that a token reads of the model whose layers give it these bits on average, routers included."""
    sizes = elastic.sizes
    routes = elastic.artifact.engine.routes
    read = sizes.deploy(PrecisionPlan.full()) + sum(routes.of(name).nbytes for name in bits)
    for name, average in bits.items():
        row = sizes.layers[name]
        read += np.interp(average, DEPTHS, [row[depth] for depth in DEPTHS]) - row[FULL]
    return read
