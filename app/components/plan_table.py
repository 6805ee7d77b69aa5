"""PlanTable: the plans measured so far, as a table with a button to load each.

In and out: nothing. What it shows the plot tells it inside the browser, and it tells the plot which plan to
load (see chart.js).
"""

from __future__ import annotations

from app.components.widget import Widget


class PlanTable(Widget):
    """A table of plans; see the module's docstring."""

    NAME = "plan_table"
    SCRIPTS = ("dom.js", "points.js")
    STYLES = ("series.css",)
