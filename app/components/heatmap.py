"""HeatMap: "only this layer low", what each layer costs by itself at a chosen width, as measured.

In:  {"blocks": [names], "roles": [names], "layers": [{"name", "block", "role"}], "bits": [widths],
     "sensitivity": [[KL of each width] of each layer], "embeddings": [KL of each width] or None,
     "conditions": what it was measured on, in words}, or {"empty": why there is nothing to show}.
Out: nothing. A click on a cell is told to the equaliser inside the browser, see heatmap.js.

It is a table, with a colour in every cell; each value is read by screen readers, and shown on hover and
focus. It stays closed, and empty, until it is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from app.components.numbers import finite
from app.components.widget import Widget, asset

SCRIPTS = ("dom.js", "plan.js", "heatmap.js")  # in this order, one after the other


class HeatMap(Widget):
    """Layers by widths, coloured by their sensitivity; see the module's docstring."""

    EVENTS: ClassVar[list] = []

    def __init__(
        self,
        value: Mapping[str, Any] | None = None,
        *,
        visible: bool = True,
        elem_id: str | None = "heatmap",
        elem_classes: list[str] | str | None = None,
        scale: int | None = None,
        min_width: int | None = None,
        render: bool = True,
        key: int | str | None = None,
    ):
        """
        Parameters:
            value: the measured sensitivities; None shows nothing.
        """
        super().__init__(
            value,
            html_template='<div class="heatmap"></div>',
            css_template=asset("heatmap.css"),
            js_on_load="".join(map(asset, SCRIPTS)),
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
        """Nothing: it only shows."""
        return

    def postprocess(self, value: Mapping[str, Any] | None) -> dict[str, Any]:
        """The value as JSON; ValueError where a layer has not one figure for each width."""
        if value is None or "empty" in value:
            return dict(value or {"empty": ""})
        for layer, row in zip(value["layers"], value["sensitivity"], strict=True):
            if len(row) != len(value["bits"]):
                raise ValueError(
                    f"{layer['name']} has {len(row)} figures for {len(value['bits'])} widths in the heat map"
                )
        return finite(dict(value))

    def api_info(self) -> dict[str, Any]:
        return {"type": "object", "title": "heat map", "description": "shown only; what is sent is ignored"}

    def example_payload(self) -> dict[str, Any]:
        return {}

    def example_value(self) -> dict[str, Any]:
        return {"empty": ""}
