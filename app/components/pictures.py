"""Pictures: a row of pictures to choose from, each with what the plan on the faders answers to it.

In:  `value`: {"items": [{"id", "name", "source": data URL, "seen": data URL or "", "label": class or None,
     "note": whose it is, "words": line under it}], "selected": id or None, "title", "empty": words where
     there are none, "live": whether it sends looks, "paste_into": elem_id of the picture input};
     `answers`, to a `look`: {"turn", "rows": {id: [full precision's class, its share, this plan's class, its
     share]}, "error"}; `again`: another number asks for a new look. A handler returns one of them alone:
     `Pictures(answers=...)`.
Out: nothing as an input. Event: `look`, when the plan on the faders or the picture chosen is another one;
     its listener takes a gr.EventData and reads it with `app.components.budget.request_of`: {"turn", "id",
     "plan"}. One look is under way at a time; during a drag the next one asks for the newest plan.

A live row sends looks, shows the chosen picture large, and takes pictures that are pasted on the page to the
picture input. Another row only tells the live one which picture was chosen.
"""

from __future__ import annotations

from typing import ClassVar

from gradio.events import EventListener

from app.components.widget import Widget


class Pictures(Widget):
    """Thumbnails with answers; see the module's docstring."""

    NAME = "pictures"
    SCRIPTS = ("dom.js",)
    PROPS = ("answers", "again")
    EMPTY = {"items": []}

    EVENTS: ClassVar[list] = [
        EventListener("look", doc="Triggered when other answers are wanted."),
    ]
