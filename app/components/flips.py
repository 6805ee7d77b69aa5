"""Flips: how often a plan changes a classifier's answer, class by class.

In:  {"rows": [[class, pictures, right at full precision, right at this plan, changed answers], ...] in the
     order to show, "left": how many further classes have no change, "total": such a row of all, "words": a
     line about them; "empty": words while there is nothing}.
Out: nothing; as an input of a handler it gives None. It has no events.
"""

from __future__ import annotations

from typing import Any, ClassVar

from app.components.widget import Widget, asset


class Flips(Widget):
    """A table of changed answers; see the module's docstring."""

    EVENTS: ClassVar[list] = []

    def __init__(
        self,
        value: dict[str, Any] | None = None,
        *,
        visible: bool = True,
        elem_id: str | None = "flips",
        elem_classes: list[str] | str | None = None,
        scale: int | None = None,
        min_width: int | None = None,
        render: bool = True,
        key: int | str | None = None,
    ):
        """
        Parameters:
            value: the rows; None means nothing yet.
        """
        super().__init__(
            value,
            html_template='<div class="flips"></div>',
            css_template=asset("flips.css"),
            js_on_load=asset("dom.js") + asset("flips.js"),
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
        """The rows as JSON."""
        return {"rows": []} if value is None else dict(value)

    def api_info(self) -> dict[str, Any]:
        return {"type": "object", "title": "flips", "description": "shown only; what is sent is ignored"}

    def example_payload(self) -> dict[str, Any]:
        return {"rows": []}

    def example_value(self) -> dict[str, Any]:
        return {"rows": []}
