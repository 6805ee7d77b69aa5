"""Printing on a terminal that lacks a character: the character degrades, the result is never lost.

Windows code pages and `LANG=C` know no `±`, no emoji of an answer, and no encoding knows half of a file name
that was not UTF-8. `forgiving()` makes stdout and stderr write something like it instead of raising.
"""

import codecs
import io
import sys
import unicodedata

PLAIN = str.maketrans(
    {"±": "+-", "…": "...", "·": "-", "–": "-", "—": "-", "−": "-", "×": "x", "→": "->", "≤": "<=", "≥": ">="}
    | dict.fromkeys("‘’", "'")
    | dict.fromkeys("“”", '"')
)


def forgiving() -> None:
    """Let stdout and stderr write plain letters for what their encoding lacks, or the character's number."""
    codecs.register_error("quept-plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="quept-plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    text = error.object[error.start : error.end].translate(PLAIN)
    return "".join(_letters(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end


def _letters(character: str) -> str:
    """A letter without its accents; "" for what is no letter of the alphabet."""
    return unicodedata.normalize("NFD", character).encode("ascii", "ignore").decode()
