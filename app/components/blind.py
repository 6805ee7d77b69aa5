"""Blind: rounds in which the answers of the chat stand in either order, without names, colors or figures,
until the visitor has said which one is the right side's; and the answers as Markdown, to copy or to save.

In and out: nothing of Python's. The script follows the DOM event `quept:chat` with what the browser keeps of
the chat (app/pages/kept_chat.py). How many rounds were won is kept in the browser's own store, by model and
plans, and shown with Wilson's interval. It has no events.
"""

from __future__ import annotations

from app.components.widget import Widget


class Blind(Widget):
    """Buttons and a line of words; see the module's docstring."""

    NAME = "blind"
    SCRIPTS = ("dom.js", "rounds.js")
