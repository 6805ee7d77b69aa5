"""Chart: quality against memory, or speed, of every plan measured, with the visitor's own moving among them.

In: {"metrics": a list of `Metric.to_dict()`, with a "floor" where differences mean nothing below one (values
     are not used), "headline": the name of the one that is shown first,
     "points": [{"id", "label", "kind": "preset" | "best" | "tried" | "baseline" | "current", "bytes",
     "bits_per_param", "measured", and of each metric its name, name_low and name_high}],
     "trail": ids of the points that the visitor has been at, in order,
     "reference": {"bytes", "bits_per_param"} of full precision, "token_s": seconds a token and seconds a
     token and byte, by which the browser predicts speed, or None}; speeds, "tokens_per_s", are an axis where
     points have them; `own`, points of the visitor's own (a
     conversation, their pictures): {"id", "label", "bytes", "bits_per_param", metrics}, returned alone as
     `Chart(own=[...])`; they go with the model. What is not known is None. Presets labelled
     W2 ... W16 are joined as the uniform line, the best plans found for their sizes as another; tried plans
     come oldest first and are listed newest first; a baseline is another tool's: it has no plan, and so no
     "Load" button; `current` is the plan on the faders, once measured. Where it was not measured the browser
     shows what the DOM event `quept:predict` predicts, without asking Python.
Out: nothing. What a browser sends as the value is dropped. Event: `point`, a click on a point or on its
     "Load" button in the table (plan_table.py); its listener takes a gr.EventData and asks `point_id` which
     plan is meant.
     Give the listeners that return this component `show_progress="hidden"`, or it fades while they run.

plotly.js comes from the Python package plotly and is served by this app, once, when the chart first comes
into sight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import gradio as gr
import plotly
from gradio.events import EventListener

from app.components.widget import Widget, finite
from app.toast import refusal

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
KINDS = ("preset", "best", "tried", "baseline", "current", "own")
MEMORY = ("bytes", "bits_per_param", "tokens_per_s")
LONGEST_ID = 120


def point_id(event: gr.EventData) -> str:
    """The id of the point that a `point` event means; gr.Error with a sentence when it is no short string."""
    sent = event._data
    identity = sent.get("id") if isinstance(sent, Mapping) else None
    if not isinstance(identity, str) or not 0 < len(identity) <= LONGEST_ID or not identity.isprintable():
        raise refusal("This point is not known any more. Reload the page.")
    return identity


class Chart(Widget):
    """Scatter chart; see the module's docstring."""

    NAME = "chart"
    SCRIPTS = ("dom.js", "terms.js", "points.js")
    STYLES = ("series.css",)
    PROPS = ("plotly_file", "own")
    EMPTY = {"points": []}

    EVENTS = [
        EventListener("point", doc="Triggered when the visitor chooses a point; `point_id` reads which.")
    ]

    def __init__(
        self,
        value: Mapping[str, Any] | None = None,
        *,
        own: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ):
        """
        Parameters:
            value: metrics, points and reference; None shows that nothing has been measured yet.
            own: points of the visitor's own; a metric's interval are its name with "_low" and "_high".
        """
        gr.set_static_paths(PLOTLY)
        points = [_own(point) for point in own or ()]
        super().__init__(value, plotly_file=PLOTLY.as_posix(), own=points, **options)

    def postprocess(self, value: Mapping[str, Any] | None) -> dict[str, Any]:
        """The value as JSON to draw; ValueError for a point without an id, a label or a known kind."""
        value = value or {}
        metrics = [finite(metric) for metric in value.get("metrics") or ()]
        names = [f"{m['name']}{end}" for m in metrics for end in ("", "_low", "_high")]
        return {
            "metrics": metrics,
            "headline": value.get("headline"),
            "points": [_point(point, (*MEMORY, *names)) for point in value.get("points") or ()],
            "trail": list(value.get("trail") or ()),
            "reference": {name: _number((value.get("reference") or {}).get(name)) for name in MEMORY},
            "token_s": value.get("token_s"),
        }


def _point(point: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    identity, label, kind = point.get("id"), point.get("label"), point.get("kind")
    if not isinstance(identity, str) or not 0 < len(identity) <= LONGEST_ID:
        raise ValueError(f"a chart point needs an 'id' of 1 to {LONGEST_ID} characters, not {identity!r}")
    if not isinstance(label, str):
        raise ValueError(f"the chart point {identity!r} needs a 'label'")  # noqa: TRY004 - a wrong value of a field
    if kind not in KINDS:
        raise ValueError(
            f"the chart point {identity!r} has the kind {kind!r}; choose one of {', '.join(KINDS)}"
        )
    numbers = {name: _number(point.get(name)) for name in names}
    return {
        "id": identity,
        "label": label[:80],
        "kind": kind,
        "measured": bool(point.get("measured")),
    } | numbers


def _own(point: Mapping[str, Any]) -> dict[str, Any]:
    names = [name for name in point if name not in ("id", "label", "kind")]
    return _point({**point, "kind": "own", "measured": True}, names)


def _number(value: Any) -> float | None:
    """A finite number or None, so that the page's JSON has no NaN."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None
