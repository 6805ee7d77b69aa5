"""Data from outside held against the form it must have, once for all files: pydantic says what is wrong, and
the sentence names the entry.

    FIGURES = form(kl=Number, ppl=Positive, more=True)            entries by name; `more`: others are numbers
    data = checked(data, form(model=str, uniform=dict[Width, FIGURES]), "this table", SensitivityError)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**53)]
Whole = Annotated[int, Field(ge=0, le=2**53)]
Width = Annotated[int, Field(ge=2, le=16)]
AnyWidth = Width | Annotated[float, Field(gt=2, lt=8, multiple_of=0.5)]  # a graded one is no whole number
Share = Annotated[float, Field(ge=0, le=1)]
Group = Count | Literal["auto", "row"]

_INTERPRETER = re.compile(r"<class '|NoneType|expected struct|invalid literal|could not convert|unpack")


def form(more: bool = False, **entries: Any) -> Any:
    """A mapping with exactly these entries; with `more`, further ones that are numbers."""
    kind = TypedDict("Form", entries)
    kind.__pydantic_config__ = ConfigDict(extra="allow" if more else "forbid")
    return Annotated[kind, AfterValidator(_numbers)] if more else kind


def _numbers(row: dict) -> dict:
    odd = [key for key, value in row.items() if type(value) not in (int, float) or not math.isfinite(value)]
    if odd:
        raise ValueError(f"{odd[0]!r:.80} should be a finite number")
    return row


def checked(data: Mapping[str, Any], kind: Any, what: str, error: Callable[[str], Exception]) -> Any:
    """`data`, as JSON gave it, in the form `kind`, keys that must be numbers as numbers; `error` with a
    sentence that begins with `what` where it is not."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data), strict=True)
    except (ValidationError, ValueError, TypeError, RecursionError) as refused:
        found = refused.errors(include_url=False) if isinstance(refused, ValidationError) else []
        where = _place(found[0]["loc"] if found else ()) or "all of it"
        message = found[0]["msg"].removeprefix("Value error, ") if found else "it is no JSON"
        message = message.replace("Input should", "it should").replace("Field required", "it is missing")
        message = message.replace("Extra inputs are not permitted", "nothing of that name is known here")
        raise error(f"{what} is damaged: {where}: {message[:1].lower()}{message[1:]}") from None


def _place(parts: Iterable[str | int]) -> str:
    """Where an entry is, as a sentence: "measured.kl of entry 1 of plans"."""
    where, names = "", []
    for part in parts:
        if isinstance(part, int):
            where, names = " of ".join(filter(None, (f"entry {part + 1:,}", _within(names, where)))), []
        elif not part.startswith(("[key]", "constrained-", "literal[")):
            names.append(part[:80])
    return _within(names, where)


def _within(names: list[str], where: str) -> str:
    return " of ".join(filter(None, (".".join(names), where)))


def quotable(error: Exception) -> str:
    """What to quote of an error in a sentence: words that were meant for a person, and of the interpreter's
    only the entry that they name."""
    said = " ".join(str(error).split())
    if isinstance(error, KeyError):
        return f"{said[:80]} is missing"
    meant = isinstance(error, ValueError | OSError | RuntimeError | ImportError | SyntaxError)
    if said and meant and not _INTERPRETER.search(said):
        return said
    found = re.search(r"[Ff]ield '(\w+)'", said)
    return f"{found[1] if found else 'an entry of one of its files'} is of the wrong kind"
