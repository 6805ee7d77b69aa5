"""Numbers: the strip of live numbers that stays in sight above the equaliser.

In:  the state of the measurement: {"status": "idle|queued|measuring|done|stored|cancelled|error", "position",
     "message", "progress", "done", "total", "unit": how many of what were measured, "metrics": a list of
     `Metric.to_dict()` with a "floor" each, without values where nothing was measured, "headline": the name
     of the metric that is compared first, "estimate": the payload or None, "uniform": {"label", name: value}
     or None, "deploy_bytes", "full_bytes", "elastic_bytes", "switch_ms", "switch_kind": "cold|warm",
     "conditions", "link"}. Every key but the status may be missing; NaN and infinity are shown as a dash.
     "link", what `link.encode(plan, model)` returns, says which plan the numbers belong to: those of a plan
     that the visitor has left meanwhile are then not shown.
Out: nothing; as an input of a handler it gives None. It has no events.

Between Python's answers the strip shows what the equaliser predicts: it listens to the DOM event
`quept:predict`. A handler that updates it should say `show_progress="hidden"`. It sticks to the top of its
parent, so it must be in one column with what scrolls.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from app.components.widget import Widget, asset

STATUSES = ("idle", "queued", "measuring", "done", "stored", "cancelled", "error")


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity, which JSON cannot say, replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Numbers(Widget):
    """Memory and quality of the plan, predicted and measured; see the module's docstring."""

    EVENTS: ClassVar[list] = []

    def __init__(
        self,
        value: dict[str, Any] | None = None,
        *,
        visible: bool = True,
        elem_id: str | None = "numbers",
        elem_classes: list[str] | str | None = None,
        scale: int | None = None,
        min_width: int | None = None,
        render: bool = True,
        key: int | str | None = None,
    ):
        """
        Parameters:
            value: state of the measurement; None means idle.
        """
        super().__init__(
            value,
            html_template='<div class="numbers"></div>',
            css_template=asset("numbers.css"),
            js_on_load=asset("bus.js") + asset("numbers.js"),
            apply_default_css=False,
            visible=visible,
            elem_id=elem_id,
            elem_classes=elem_classes,
            scale=scale,
            min_width=min_width,
            render=render,
            key=key,
        )

    def preprocess(self, payload: Any) -> None:
        """Output only: whatever the browser sends back is not used."""
        return

    def postprocess(self, value: dict[str, Any] | None) -> dict[str, Any]:
        """The state as JSON; ValueError for an unknown status."""
        state = {"status": "idle"} if value is None else dict(value)
        if state.get("status") not in STATUSES:
            raise ValueError(f"status {state.get('status')!r} is not one of {', '.join(STATUSES)}")
        return finite(state)

    def api_info(self) -> dict[str, Any]:
        return {"type": "object", "title": "measurement", "description": "state of the measurement of a plan"}

    def example_payload(self) -> dict[str, Any]:
        return {"status": "idle"}

    def example_value(self) -> dict[str, Any]:
        return {"status": "idle"}
