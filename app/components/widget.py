"""Widget: a gr.HTML whose script and style are files beside the class, and whose value is data, not HTML.

A subclass declares its events in `EVENTS` and hands its files over with `asset`. Two rules keep a page safe
and whole: templates are constant text (Gradio runs any `${...}` it finds in one; the scripts write what comes
from outside with textContent only), and a constructor argument that is a prop has the prop's name, so that a
component returned from an event handler reaches the browser unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import gradio as gr


def asset(name: str) -> str:
    """The text of a file in this folder, such as "equalizer.js"."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


class Widget(gr.HTML):
    """gr.HTML without its guessing: only the names in `EVENTS` are events.

    gr.HTML makes an event listener of every quoted word in its script: one that says "description" has an
    event of that name, and the listener would end up in the page's configuration, which must be JSON.
    """

    EVENTS: ClassVar[list] = []

    def __getattr__(self, name: str):
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
