"""HeatMap: "only this layer low", what each layer costs by itself at a chosen width, as measured.

In:  {"blocks": [names], "roles": [names], "layers": [{"name", "block", "role"}], "kv_blocks": [columns],
     "title": the text, "bits": [widths], "sensitivity": [[KL of each width] of each layer], "embeddings": [KL
     of each width] or None, "cache": [[KL of each width] of each of the `kv_blocks`] or [], "conditions":
     what it was measured on, as text, "others": [the same from "title" on, and its "agreement" with this
     one in words]}, or {"empty": why there is nothing to show}.
Out: nothing. A click on a cell is told to the equaliser inside the browser, see heatmap.js.

It is a table, with a colour in every cell; each value is read by screen readers, and shown on hover and
focus.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.components.widget import Widget, finite


class HeatMap(Widget):
    """Layers by widths, coloured by their sensitivity; see the module's docstring."""

    NAME = "heatmap"
    SCRIPTS = ("dom.js", "plan.js")
    EMPTY = {"empty": ""}

    def postprocess(self, value: Mapping[str, Any] | None) -> dict[str, Any]:
        """The value as JSON; ValueError where a layer has not one number for each width."""
        if value is None or "empty" in value:
            return dict(value or {"empty": ""})
        for layer, row in zip(value["layers"], value["sensitivity"], strict=True):
            if len(row) != len(value["bits"]):
                raise ValueError(
                    f"{layer['name']} has {len(row)} numbers for {len(value['bits'])} widths in the heat map"
                )
        return finite(dict(value))
