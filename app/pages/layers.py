"""The Layers page: which layers are fragile, as measured one by one."""

from __future__ import annotations

from app.components.heatmap import HeatMap
from app.pages.context import LIGHT, Page, PageContext


def build(context: PageContext) -> None:
    """Draw the page and wire it."""
    opened = context.service.opened
    heatmap = HeatMap(opened[context.first].heat, elem_id="heatmap")
    context.on_model(lambda model: opened[model].heat, context.model, heatmap, **LIGHT)


PAGE = Page("layers", "Layers", build)
