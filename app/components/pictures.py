"""Pictures: a row of pictures to choose from, each with what the plan on the faders answers to it.

In:  `value`: {"items": [{"id", "name", "source": data URL, "seen": data URL or "", "label": class or None,
     "words": line under it}], "selected": id or None, "title", "empty": words where there are none,
     "live": whether it sends looks, "paste_into": elem_id of the picture input};
     `answers`, to a `look`: {"turn", "rows": {id: [full precision's class, its share, this plan's class, its
     share]}, "error"}; `again`: another number asks for a new look. A handler returns one of them alone:
     `Pictures(answers=...)`.
Out: nothing as an input. Event: `look`, when the plan on the faders or the picture chosen is another one;
     its listener takes a gr.EventData and reads it with `app.components.budget.request_of`: {"turn", "id",
     "plan"}. One look is under way at a time; during a drag the next one asks for the newest plan.

A live row sends looks, shows the chosen picture large, and takes pictures that are pasted on the page to the
picture input. Another row only tells the live one which picture was chosen.
The row belongs to the equaliser around it (see bus.js).
"""

from __future__ import annotations

from typing import Any, ClassVar

from gradio.events import EventListener

from app.components.widget import Widget, asset

SCRIPTS = ("bus.js", "dom.js", "pictures.js")  # in this order, one after the other


class Pictures(Widget):
    """Thumbnails with answers; see the module's docstring."""

    EVENTS: ClassVar[list] = [
        EventListener("look", doc="Triggered when other answers are wanted."),
    ]

    def __init__(
        self,
        value: dict[str, Any] | None = None,
        *,
        answers: dict[str, Any] | None = None,
        again: float | None = None,
        visible: bool = True,
        elem_id: str | None = "pictures",
        elem_classes: list[str] | str | None = None,
        scale: int | None = None,
        min_width: int | None = None,
        render: bool = True,
        key: int | str | None = None,
    ):
        """
        Parameters:
            value: the pictures.
            answers: what is answered to them.
            again: another number asks for a new look.
        """
        super().__init__(
            value,
            html_template='<div class="pictures"></div>',
            css_template=asset("pictures.css"),
            js_on_load="".join(map(asset, SCRIPTS)),
            apply_default_css=False,
            visible=visible,
            elem_id=elem_id,
            elem_classes=elem_classes,
            scale=scale,
            min_width=min_width,
            render=render,
            key=key,
            answers=answers,
            again=again,
        )

    def preprocess(self, payload: Any) -> None:
        """Nothing: what is chosen travels with the event."""
        return

    def postprocess(self, value: dict[str, Any] | None) -> dict[str, Any]:
        """The pictures as JSON."""
        return {"items": []} if value is None else dict(value)

    def api_info(self) -> dict[str, Any]:
        return {"type": "object", "title": "pictures", "description": "shown only; what is sent is ignored"}

    def example_payload(self) -> dict[str, Any]:
        return {"items": []}

    def example_value(self) -> dict[str, Any]:
        return {"items": []}
