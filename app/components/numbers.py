"""Numbers: the strip of live numbers that stays in sight above the equaliser.

In:  the state of the measurement: {"status": "idle|opening|queued|measuring|done|stored|cancelled|error",
     "position", "message", "progress", "done", "total", "unit": how many of what were measured, "metrics": a
     list of `Metric.to_dict()` with a "floor" each, without values where nothing was measured, "headline":
     the name of the metric that is compared first, "estimate": the payload or None, "uniform": {"label",
     name: value} or None, "deploy_bytes", "full_bytes", "resident_bytes": of the whole app,
     "memory": {"weights", "cache", "scratch"} of this plan in bytes, "dense": why weights are not multiplied
     packed, "speed": {"tokens_per_s", "first_token_ms", "origin", "line"} or None, "switch_ms",
     "switch_kind": "cold|warm", "conditions", "link", "model": the
     name of the one that is being opened}. Every key but the status may be missing; NaN and
     infinity are shown as a dash.
     "link", what `link.encode(plan, model)` returns, says which plan the numbers belong to: those of a plan
     that the visitor has left meanwhile are then not shown.
Out: nothing; as an input of a handler it gives None. It has no events.

Between Python's answers the strip shows what the equaliser predicts: it listens to the DOM event
`quept:predict`. A handler that updates it should say `show_progress="hidden"`. Once it is scrolled out of
sight one line with the same numbers lies at the top of the window.
"""

from __future__ import annotations

from typing import Any

from app.components.widget import Widget, finite

STATUSES = ("idle", "opening", "queued", "measuring", "done", "stored", "cancelled", "error")


class Numbers(Widget):
    """Memory and quality of the plan, predicted and measured; see the module's docstring."""

    NAME = "numbers"
    SCRIPTS = ("dom.js", "terms.js")
    EMPTY = {"status": "idle"}

    def postprocess(self, value: dict[str, Any] | None) -> dict[str, Any]:
        """The state as JSON; ValueError for an unknown status."""
        state = super().postprocess(value)
        if state.get("status") not in STATUSES:
            raise ValueError(f"status {state.get('status')!r} is not one of {', '.join(STATUSES)}")
        return finite(state)
