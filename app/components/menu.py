"""Menu: one of a few, chosen in the browser's own menu, which has a name and closes when it is left.

In:  `value`, the value chosen; `choices`, [[label, value], ...]; `name`, its name, for everybody or (with
     `named=False`) for screen readers alone.
Out: the value; gr.Error with a sentence for one that is not offered.
Events: `input`, a choice of the visitor's; `change`, any other value.

To offer others, return `Menu(choices=..., value=...)` from a handler.
"""

from __future__ import annotations

from typing import Any, ClassVar

from gradio.events import Events

from app.components.widget import Widget
from app.toast import refusal


class Menu(Widget):
    """A select with a label; see the module's docstring."""

    NAME = "menu"
    SCRIPTS = ("dom.js",)
    PROPS = ("choices", "name", "named")
    EVENTS: ClassVar[list] = [Events.input, Events.change]

    def preprocess(self, payload: Any) -> str:
        """The value chosen."""
        if payload not in [value for _, value in self.props.get("choices") or ()]:
            raise refusal("This choice is not offered here any more. Reload the page.")
        return payload

    def postprocess(self, value: str | None) -> str:
        """The value to show."""
        return value or ""

    def api_info(self) -> dict[str, Any]:
        return {"type": "string", "title": "choice", "description": "one of the values offered"}

    def example_payload(self) -> str:
        return ""

    def example_value(self) -> str:
        return ""
