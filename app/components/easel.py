"""Easel: the picture that questions are asked about: one of a row, or one that the visitor draws, and
questions to begin with.

In:  {"items": [{"id", "name", "source": data URL, "questions": [suggestions]}, ...] in the order to show,
     "selected": id of the one to choose, or None to keep the choice, "questions": suggestions for a drawing,
     "colours": [[name, "#rrggbb"], ...] to draw with, "empty": words where there are no items, "paste_into":
     elem_id of the picture input}.
Out: {"id"} of the chosen picture, {"png": the bytes of the drawing}, or None for no picture.
Event: `ask`, when a suggestion is chosen; its listener takes a gr.EventData and reads it with
     `app.components.budget.request_of`: {"question", "picture": as the browser holds the value, for
     `picture_of`}.

A picture on the clipboard goes to the picture input. Nothing of a drawing leaves the browser until something
is asked about it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, ClassVar

from gradio.events import EventListener

from app.components.widget import Widget

PNG = "data:image/png;base64,"
MOST_CHARACTERS = 2_000_000  # of a drawing as the browser sends it


def picture_of(payload: object) -> dict[str, Any] | None:
    """The value, from what the browser sent: whatever else it may be is no picture."""
    if not isinstance(payload, Mapping):
        return None
    identity, png = payload.get("id"), payload.get("png")
    if isinstance(identity, str):
        return {"id": identity[:64]}
    if isinstance(png, str) and png.startswith(PNG) and len(png) <= MOST_CHARACTERS:
        try:
            return {"png": base64.b64decode(png[len(PNG) :], validate=True)}
        except binascii.Error:
            return None
    return None


class Easel(Widget):
    """A picture, chosen or drawn; see the module's docstring."""

    NAME = "easel"
    SCRIPTS = ("dom.js", "sketch.js")
    EMPTY = {"items": []}

    EVENTS: ClassVar[list] = [
        EventListener("ask", doc="Triggered when a suggested question is chosen."),
    ]

    def preprocess(self, payload: Any) -> dict[str, Any] | None:
        """See `picture_of`."""
        return picture_of(payload)

    def api_info(self) -> dict[str, Any]:
        return {"type": "object", "title": "picture", "description": '{"id"} or {"png": data URL}'}

    def example_payload(self) -> dict[str, Any]:
        return {"id": "example:0"}
