"""Talk: questions about pictures, and both sides' answers to each beside each other, the newest first.

In:  {"turns": [{"question", "source": data URL of the picture, "note": why the answers are guesses, or "",
     "line": how the answers compare, "parted": true or false, "sides": [{"label", "state": as of SideStatus,
     "text": [before what differs, that, behind it], "bars": [[token, share 0..1], ...], "caption": words
     above the bars, "right": whether it is the known answer, or None}, ...]}, ...], the oldest first,
     "empty": [words while there are none, ...]}.
Out: nothing; as an input of a handler it gives None. It has no events.
"""

from __future__ import annotations

from app.components.widget import Widget


class Talk(Widget):
    """Questions and pairs of answers; see the module's docstring."""

    NAME = "talk"
    SCRIPTS = ("dom.js",)
    EMPTY = {"turns": []}
