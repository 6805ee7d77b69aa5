"""Chart: quality against memory of every plan measured, with the visitor's own plan moving among them.

In: {"points": [{"id", "label", "kind": "preset" | "best" | "tried" | "baseline" | "current",
     "bytes", "bits_per_param", "kl", "kl_se", "ppl", "ppl_se", "same_top", "same_top_se"?, "measured"}],
     "reference": {"bytes", "ppl", "bits_per_param"}, "floor": KL of the reference in 16 bits}. `same_top` is
     a share, 0 to 1; what is not known is None. Presets labelled W2 ... W16 are joined as the uniform line,
     the best plans found for their sizes as another; tried plans come oldest first and are listed newest
     first; a baseline is another tool's: it has no plan, and so no "Load" button; `current` is the plan on
     the faders, once measured. Where it was not measured the browser shows what the DOM event
     `quept:predict` predicts, without asking Python.
     "kind": "vision" or "vision-language" in the value says that the points tell accuracy: "top1" and
     "same_top" with the ends of their 95 % intervals, "top1_low" and so on, in the place of "ppl" and
     standard errors; and "top1" in the reference.
Out: nothing. What a browser sends as the value is dropped. Event: `point`, a click on a point or on its
     "Load" button in the table; its listener takes a gr.EventData and asks `point_id` which plan is meant.
     Give the listeners that return this component `show_progress="hidden"`, or it fades while they run.

plotly.js comes from the Python package plotly and is served by this app, once, when the chart first comes
into sight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import gradio as gr
import plotly
from gradio.events import EventListener

from app.components.widget import Widget, asset
from app.toast import refusal

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
KINDS = ("preset", "best", "tried", "baseline", "current")
NUMBERS = ("bytes", "bits_per_param", "kl", "kl_se", "ppl", "ppl_se", "same_top", "same_top_se")
NUMBERS += ("top1", "top1_low", "top1_high", "same_top_low", "same_top_high")
REFERENCE = ("bytes", "ppl", "top1", "bits_per_param")
ACCURATE = ("vision", "vision-language")  # models whose quality is an accuracy
LONGEST_ID = 120


def point_id(event: gr.EventData) -> str:
    """The id of the point that a `point` event means; gr.Error in words when it is no short string."""
    sent = event._data
    identity = sent.get("id") if isinstance(sent, Mapping) else None
    if not isinstance(identity, str) or not 0 < len(identity) <= LONGEST_ID or not identity.isprintable():
        raise refusal("This point is not known any more. Reload the page.")
    return identity


class Chart(Widget):
    """Scatter chart with a table of the same plans below it; see the module's docstring."""

    EVENTS = [
        EventListener("point", doc="Triggered when the visitor chooses a point; `point_id` reads which.")
    ]

    def __init__(
        self,
        value: Mapping[str, Any] | None = None,
        *,
        visible: bool = True,
        elem_id: str | None = "chart",
        elem_classes: list[str] | str | None = None,
        scale: int | None = None,
        min_width: int | None = None,
        render: bool = True,
        key: int | str | None = None,
    ):
        """
        Parameters:
            value: points, reference and noise floor; None shows that nothing has been measured yet.
        """
        gr.set_static_paths(PLOTLY)
        super().__init__(
            value,
            html_template='<div class="chart"></div>',
            css_template=asset("chart.css"),
            js_on_load=asset("bus.js") + asset("chart.js"),
            apply_default_css=False,
            visible=visible,
            elem_id=elem_id,
            elem_classes=elem_classes,
            scale=scale,
            min_width=min_width,
            render=render,
            key=key,
            plotly_file=PLOTLY.as_posix(),
        )

    def preprocess(self, payload: Any) -> None:
        """Nothing: the browser has no say in what was measured."""
        return

    def postprocess(self, value: Mapping[str, Any] | None) -> dict[str, Any]:
        """The value as JSON to draw; ValueError for a point without an id, a label or a known kind."""
        value = value or {}
        reference = value.get("reference") or {}
        return {
            "kind": value["kind"] if value.get("kind") in ACCURATE else "language",
            "points": [_point(point) for point in value.get("points") or ()],
            "reference": {name: _number(reference.get(name)) for name in REFERENCE},
            "floor": _number(value.get("floor")),
        }

    def api_info(self) -> dict[str, Any]:
        return {"type": "object", "title": "chart", "description": "shown only; what is sent is ignored"}

    def example_payload(self) -> dict[str, Any]:
        return {"points": []}

    def example_value(self) -> dict[str, Any]:
        return {"points": []}


def _point(point: Mapping[str, Any]) -> dict[str, Any]:
    identity, label, kind = point.get("id"), point.get("label"), point.get("kind")
    if not isinstance(identity, str) or not 0 < len(identity) <= LONGEST_ID:
        raise ValueError(f"a chart point needs an 'id' of 1 to {LONGEST_ID} characters, not {identity!r}")
    if not isinstance(label, str):
        raise ValueError(f"the chart point {identity!r} needs a 'label'")  # noqa: TRY004 - a wrong value of a field
    if kind not in KINDS:
        raise ValueError(
            f"the chart point {identity!r} has the kind {kind!r}; choose one of {', '.join(KINDS)}"
        )
    numbers = {name: _number(point.get(name)) for name in NUMBERS}
    return {
        "id": identity,
        "label": label[:80],
        "kind": kind,
        "measured": bool(point.get("measured")),
    } | numbers


def _number(value: Any) -> float | None:
    """A finite number or None, so that the page's JSON has no NaN."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None
