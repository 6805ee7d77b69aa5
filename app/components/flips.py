"""Flips: how often a plan changes a classifier's answer, class by class.

In:  {"rows": [[class, pictures, right at full precision, right at this plan, changed answers], ...] in the
     order to show, "left": how many further classes have no change, "total": such a row of all, "words": a
     line about them; "empty": words while there is nothing}.
Out: nothing; as an input of a handler it gives None. It has no events.
"""

from __future__ import annotations

from app.components.widget import Widget


class Flips(Widget):
    """A table of changed answers; see the module's docstring."""

    NAME = "flips"
    SCRIPTS = ("dom.js",)
    EMPTY = {"rows": []}
