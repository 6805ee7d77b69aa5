"""Answers: gr.Chatbot that keeps to itself how programs would call it.

A chatbot describes its messages to programs three times over, in a sixth of all that the page is told at the
start, and no endpoint that programs may call has one (see app.api).
"""

from __future__ import annotations

import gradio as gr


class Answers(gr.Chatbot):
    """gr.Chatbot; see the module's docstring."""

    is_template = True  # drawn as gr.Chatbot is

    @property
    def skip_api(self) -> bool:
        return True
