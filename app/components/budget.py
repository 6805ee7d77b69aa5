"""Budget: type or drag a size, and the equaliser shows the best bits for it; refine that plan by measuring.

In:  `path`, the plans that the slider runs through: {"model": its name, "path": what `Path.to_dict()` of
     quept.allocate.solve.solver returns, or None, "error": why there is none, as text, or "", "activations":
     whether activation widths were measured too, "turn": the request it answers, 0 for none, "parts": what a
     floor or ceiling may be given to at once, [{"name", "keys"}], "tables": [[name, title]] of the
     sensitivities where there is a choice, "said": what a request's file says, and, where the budget is of a
     file, "file": {"title", "sizes": [[bytes at each width, or null], ...], "embeddings": {width: bytes},
     "fixed"}};
     `answer`, to the latest request: {"serial": the request's, "error": words} or {"serial", "plan": {"w",
     "e", and "a" if it changes}, "budget": bytes, "note": where the plan is from if the solver did not make
     it, else ""};
     `refined`, the refinement under way: {"status": "running|done|cancelled|error", "message",
     "stage", "tried", "kl", "start_kl", "uniform_kl", "seconds", "limit", "fraction"}, at the end
     whether it is "better", and then its "plan" and "name".
     A handler returns one of them alone: `Budget(answer=...)`.
Out: nothing as an input. Events, whose listeners take a gr.EventData and read it with `request_of`:
     `solve`    a budget is wanted: {"serial", "budget": bytes or words, and the limits};
     `limit`    the limits have changed, and with them the path: {"turn", and the limits};
     `refine`   {"budget": bytes, and the limits};
     `cancel`   end the refinement.
   Limits: {"ties": "none|qkv|block", "full_embeddings": whether they stay at 16, "activations": 16 or less or
   "as weights", "table": the name of the sensitivities to place bits by, "" for those of predictions, "pins":
   [[number of a layer, or -1 for the embeddings, its bits], ...], "pin", "floor", "ceiling": {layer, pattern,
   "embeddings" or "kv": bits}, "widths", "embeddings", "kv": [bits], as options of the command line, "file":
   the text of a file of constraints to be read, "target": the format whose files the budget is for, "" for
   weights in memory}.

The plan goes from here to the equaliser inside the browser, see budget.js, and from there to Python as any
edit does. While the slider is dragged nothing is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gradio as gr
from gradio.events import EventListener

from app.components.widget import Widget
from app.toast import refusal


def request_of(event: gr.EventData) -> Mapping[str, Any]:
    """What the browser sent with an event, unchecked; gr.Error with a sentence when it is no object."""
    sent = event._data
    if not isinstance(sent, Mapping):
        raise refusal("This request was not understood. Reload the page.")
    return sent


class Budget(Widget):
    """Text box, slider, constraints and refinement; see the module's docstring."""

    NAME = "budget"
    SCRIPTS = ("dom.js", "plan.js", "path.js")
    PROPS = ("path", "answer", "refined")

    EVENTS: ClassVar[list] = [
        EventListener("solve", doc="Triggered when the visitor has let go of the slider or typed a budget."),
        EventListener("limit", doc="Triggered when constraints or locks have changed."),
        EventListener("refine", doc="Triggered when the visitor wants the plan refined by measuring."),
        EventListener("cancel", doc="Triggered when the visitor ends the refinement."),
    ]
