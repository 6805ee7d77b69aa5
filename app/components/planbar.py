"""PlanBar: where a plan comes from and where it goes: plans by name, undo and redo, share, download, a card
(card.js: a picture drawn in the browser), upload, and three states worth seeing.

In:  `plans`: {"model", "plans": [{"name", "label", "kind": "uniform|best|named", "link": what `link.encode`
     returns of it, "bytes", "quality": words or "", "says": which bits, in words}, ...], "tries": [{"label",
     "plan": its name, "budget": words, "tab": id of the page to open}, ...], each with some of those};
     `file`, the answer to `download`: {"turn", "name", "text"}.
Out: nothing as an input. Events, whose listeners take a gr.EventData and read it with
     `app.components.budget.request_of`:
     `download`  the plan on the faders as a file: {"turn", "plan"}
     `upload`    a file of the visitor's: {"text"}
     `travel`    Back led to another model: {"query": the address's, as an object}

A plan by its name goes to the equaliser inside the browser, as an edit of the visitor's does; the button of
the plan on the faders is pressed.
"""

from __future__ import annotations

from typing import ClassVar

from gradio.events import EventListener

from app.components.widget import Widget


class PlanBar(Widget):
    """Buttons, two menus and files; see the module's docstring."""

    NAME = "planbar"
    SCRIPTS = ("dom.js", "terms.js", "plan.js", "card.js")
    PROPS = ("plans", "file")

    EVENTS: ClassVar[list] = [
        EventListener("download", doc="Triggered when the plan is wanted as a file."),
        EventListener("upload", doc="Triggered when a plan file was chosen."),
        EventListener("travel", doc="Triggered when the browser went back to another model."),
    ]
