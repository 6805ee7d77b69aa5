"""Talk: questions about pictures, and both sides' answers to each beside each other, the newest first.

In:  {"turns": [{"question", "source": data URL of the picture, "note": why the answers are guesses, or "",
     "line": how the answers compare, "parted": true or false, "sides": [{"label", "state": as of SideStatus,
     "text": [before what differs, that, behind it], "bars": [[token, share 0..1], ...], "caption": words
     above the bars, "right": whether it is the known answer, or None}, ...]}, ...], the oldest first,
     "empty": [words while there are none, ...]}.
Out: nothing; as an input of a handler it gives None. It has no events.
"""

from __future__ import annotations

from typing import Any, ClassVar

from app.components.widget import Widget, asset


class Talk(Widget):
    """Questions and pairs of answers; see the module's docstring."""

    EVENTS: ClassVar[list] = []

    def __init__(
        self,
        value: dict[str, Any] | None = None,
        *,
        visible: bool = True,
        elem_id: str | None = "talk",
        elem_classes: list[str] | str | None = None,
        scale: int | None = None,
        min_width: int | None = None,
        render: bool = True,
        key: int | str | None = None,
    ):
        """
        Parameters:
            value: the turns; None means none yet.
        """
        super().__init__(
            value,
            html_template='<div class="talk"></div>',
            css_template=asset("talk.css"),
            js_on_load=asset("dom.js") + asset("talk.js"),
            apply_default_css=False,
            visible=visible,
            elem_id=elem_id,
            elem_classes=elem_classes,
            scale=scale,
            min_width=min_width,
            render=render,
            key=key,
        )

    def preprocess(self, payload: Any) -> None:
        """Output only: whatever the browser sends back is not used."""
        return

    def postprocess(self, value: dict[str, Any] | None) -> dict[str, Any]:
        """The turns as JSON."""
        return {"turns": []} if value is None else dict(value)

    def api_info(self) -> dict[str, Any]:
        return {"type": "object", "title": "talk", "description": "shown only; what is sent is ignored"}

    def example_payload(self) -> dict[str, Any]:
        return {"turns": []}

    def example_value(self) -> dict[str, Any]:
        return {"turns": []}
