"""PictureInput: gr.Image for a picture from a stranger: uploaded, dropped, pasted or from the camera.

Out: the path of the file as it came. Nothing has looked into it; whoever reads it checks it, and removes it.
"""

from __future__ import annotations

from typing import Any

import gradio as gr


class PictureInput(gr.Image):
    """gr.Image that opens nothing; see the module's docstring."""

    is_template = True  # drawn as gr.Image is

    def preprocess(self, payload: Any) -> str | None:
        """The path, None for no picture."""
        return payload.path if payload else None
