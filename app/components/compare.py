"""Compare: two plans layer by layer, and what they weigh and cost beside each other.

In:  `plans`, what there is to choose from: {"model": name, "choices": [[label, value], ...], "blocks":
     [names], "roles": [names], "layers": [[role, block], ...] in plan order, "metrics": what is measured of
     this model (`Metric.to_dict()` each), "headline": the name of the one that a table predicts, "stamp":
     another number each time something was measured}; `answer`, to a request: {"turn", "a": side, "b": side}
     or {"turn", "error": words}, a side {"label", "plan": plan JSON, "bytes", "bits_per_param", "predicted":
     {name: value} or None, "metrics": the same metrics with values or None}.
Out: nothing as an input. Event: `compare`, whose listener takes a gr.EventData and reads it with
     `app.components.budget.request_of`: {"turn", "a": value, "b": value, "plan": the one on the faders}.

It stays closed until it is opened, and asks for nothing before.
"""

from __future__ import annotations

from typing import Any, ClassVar

from gradio.events import EventListener

from app.components.numbers import finite
from app.components.widget import Widget, asset

SCRIPTS = ("dom.js", "plan.js", "compare.js")  # in this order, one after the other


class Compare(Widget):
    """Two menus, a table of totals and a strip of differences; see the module's docstring."""

    EVENTS: ClassVar[list] = [
        EventListener("compare", doc="Triggered when two plans are to be compared."),
    ]

    def __init__(
        self,
        *,
        plans: dict[str, Any] | None = None,
        answer: dict[str, Any] | None = None,
        visible: bool = True,
        elem_id: str | None = "compare",
        elem_classes: list[str] | str | None = None,
        scale: int | None = None,
        min_width: int | None = None,
        render: bool = True,
        key: int | str | None = None,
    ):
        """
        Parameters:
            plans: the plans to choose from, and where their layers lie.
            answer: the two plans that were asked for.
        """
        super().__init__(
            None,
            html_template='<div class="compare"></div>',
            css_template=asset("compare.css"),
            js_on_load="".join(map(asset, SCRIPTS)),
            apply_default_css=False,
            visible=visible,
            elem_id=elem_id,
            elem_classes=elem_classes,
            scale=scale,
            min_width=min_width,
            render=render,
            key=key,
            plans=finite(plans),
            answer=finite(answer),
        )

    def preprocess(self, payload: Any) -> None:
        """Nothing: requests travel with the event."""
        return

    def postprocess(self, value: Any) -> None:
        """Nothing: everything it shows is a property."""
        return

    def api_info(self) -> dict[str, Any]:
        return {"type": "object", "title": "compare", "description": "shown only; what is sent is ignored"}

    def example_payload(self) -> dict[str, Any]:
        return {}

    def example_value(self) -> dict[str, Any]:
        return {}
