"""The text of a refusal, short enough to read: it repeats what was typed, or what a file says, which may be
anything."""

from __future__ import annotations

import re

KEPT = 80  # letters at either end of what is cut
LONG = re.compile(rf"\S{{{4 * KEPT},}}")  # a word longer than a name, and than most paths
LONGEST = 2000


def brief(text: object) -> str:
    """Returns the text with the middle left out of every word that is longer than a name, and of the whole
    where that is longer than any sentence."""
    words = LONG.sub(lambda word: f"{word[0][:KEPT]}…{word[0][-KEPT:]}", str(text))
    return words if len(words) <= LONGEST else f"{words[: LONGEST - KEPT]}…{words[-KEPT:]}"
