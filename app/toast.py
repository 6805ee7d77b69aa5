"""Words for a visitor that Gradio shows as HTML: toasts and Markdown.

Every text from outside (a link, a plan file, a picture, a model's name, an error that repeats one of them)
passes `shown` on its way there, and nothing else in the app calls gr.Warning, gr.Info or gr.Error: a test
sees to it.
"""

from __future__ import annotations

import html
import re

import gradio as gr

LONGEST = 600


def shown(text: object) -> str:
    """The text as HTML and as Markdown that reads the same: no tag, no picture, no link."""
    words = str(text)
    words = words if len(words) <= LONGEST else words[:LONGEST] + "…"
    return re.sub(r"[\[\]!*_`~\\]", lambda sign: f"&#{ord(sign[0])};", html.escape(words))


def warn(text: object, title: str = "Warning") -> None:
    """Something was not done, and why."""
    gr.Warning(shown(text), title=title)


def inform(text: object, title: str = "Info") -> None:
    """Something worth knowing about what was done."""
    gr.Info(shown(text), title=title)


def refusal(text: object, title: str = "Error") -> gr.Error:
    """To raise where a request cannot be answered."""
    return gr.Error(shown(text), title=title, print_exception=False)
