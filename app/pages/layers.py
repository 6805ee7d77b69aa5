"""The Layers page: which layers are fragile, as measured one by one."""

from __future__ import annotations

from app.components.heatmap import HeatMap
from app.pages.context import LIGHT, Page, PageContext


def build(context: PageContext) -> None:
    """Draw the page and wire it."""
    opened = context.service.opened
    heatmap = HeatMap(elem_id="heatmap")  # a tenth of the page's configuration: it comes when it is looked at

    def heat(model: str):
        return opened[model].heat

    context.tab.select(heat, context.model, heatmap, **LIGHT)
    context.on_model(heat, context.model, heatmap, **LIGHT)


PAGE = Page("layers", "Layers", build)
