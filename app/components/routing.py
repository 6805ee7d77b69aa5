"""Routing: what an average of bits per token costs, and which layers get them.

In:  {"average": bits, "kl": of it, "curve": [[bits, KL], ...], "depths": [[bits, KL], ...] of every token
     at the same depth, "layers": [[name, bits at this average], ...], "kept", "read": bytes as text}, or {}.
Out: nothing; as an input of a handler it gives None. It has no events.
"""

from __future__ import annotations

from app.components.widget import Widget


class Routing(Widget):
    """The curve with its point, and a bar for each group of layers; see the module's docstring."""

    NAME = "routing"
    SCRIPTS = ("dom.js",)
    EMPTY = {}
