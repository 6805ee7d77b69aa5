"""Multiple-choice questions and cloze tasks, read from the gzipped JSON lines that the catalogue names: a
request for each possible answer of each question."""

from __future__ import annotations

from .cache import Progress, SourceError
from .catalogue import CHOICES
from .texts import rows

Pairs = tuple[tuple[str, str], ...]


def choices(name: str, progress: Progress | None = None) -> list[tuple[Pairs, int]]:
    """The distinct questions of `name` in file order: the pairs (context, continuation) of the possible
    answers, and the number of the right one. Of a cloze there is one pair."""
    if name not in CHOICES:
        raise SourceError(f"there are no built-in questions {name!r}. Built in are: {', '.join(CHOICES)}.")
    pairs: dict[int, list[tuple[str, str]]] = {}
    right: dict[int, int] = {}
    for row in rows(CHOICES[name].source, progress):
        request, label = row["request"], row["label"]
        pairs.setdefault(row["doc_id"], []).append((request["context"], request["continuation"]))
        right[row["doc_id"]] = label if isinstance(label, int) else 0
    return list(dict.fromkeys((tuple(found), right[doc]) for doc, found in pairs.items()))
