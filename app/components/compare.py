"""Compare: two plans layer by layer, and what they weigh and cost beside each other.

In:  `plans`, what there is to choose from: {"model": name, "choices": [[label, value], ...], "blocks":
     [names], "roles": [names], "layers": [[role, block], ...] in plan order, "metrics": what is measured of
     this model (`Metric.to_dict()` each), "headline": the name of the one that a table predicts, "stamp":
     another number each time something was measured}; `answer`, to a request: {"turn", "a": side, "b": side}
     or {"turn", "error": words}, a side {"label", "plan": plan JSON, "bytes", "bits_per_param", "predicted":
     {name: value} or None, "metrics": the same metrics with values or None}.
Out: nothing as an input. Event: `compare`, whose listener takes a gr.EventData and reads it with
     `app.components.budget.request_of`: {"turn", "a": value, "b": value, "plan": the one on the faders}.

It asks for nothing before it is in sight.
"""

from __future__ import annotations

from typing import ClassVar

from gradio.events import EventListener

from app.components.widget import Widget


class Compare(Widget):
    """Two menus, a table of totals and a strip of differences; see the module's docstring."""

    NAME = "compare"
    SCRIPTS = ("dom.js", "plan.js")
    PROPS = ("plans", "answer")

    EVENTS: ClassVar[list] = [
        EventListener("compare", doc="Triggered when two plans are to be compared."),
    ]
