"""Words for a visitor that Gradio shows as HTML: toasts and Markdown.

Every text from outside (a link, a plan file, a picture, a model's name, an error that repeats one of them)
passes `shown` on its way there, and nothing else in the app calls gr.Warning, gr.Info or gr.Error: a test
sees to it. What Gradio itself refuses passes `error_payload` (see border).
"""

from __future__ import annotations

import html
import re

import gradio as gr
from gradio.utils import error_payload as _error_payload

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
    return _Refusal(shown(text), title=title, print_exception=False)


class _Refusal(gr.Error):
    """Its words have passed `shown`."""


def error_payload(error: BaseException | None, show_error: bool) -> dict:
    """What Gradio answers where a handler failed, with Gradio's own words as text: they repeat what was sent,
    such as a choice that a menu does not have."""
    content = _error_payload(error, show_error)
    if isinstance(error, _Refusal):
        return content
    return content | {key: shown(content[key]) for key in ("error", "title") if content.get(key)}
