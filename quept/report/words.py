"""Numbers, sizes, times and plan names as people read them; and what counts as a number in a file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

_PLAN = re.compile(r"W(\d{1,2})(?:A(\d{1,2}))?(?:KV(\d{1,2}))?(?:, vision 8)?", re.IGNORECASE)
DASH = "–"


def number(value: object) -> float | None:
    """A finite number as it is; None for anything else that a file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return None
    return float(value) if math.isfinite(value) else None


def short(x: float | None, error: float | None = None) -> str:
    """Three digits, with its standard error if there is one; a dash for what was not measured."""
    if x is None:
        return DASH
    text = f"{x:.3g}" if abs(x) < 100 else f"{x:,.0f}" if abs(x) < 1e5 else f"{x:.2g}"
    return text if error is None else f"{text} ± {error:.2g}"


def size(count: int) -> str:
    """Bytes in the unit that fits, decimal as everywhere in the program."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 100 * scale else f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def duration(seconds: float) -> str:
    """ "3.4 s", "2 min 5 s", "1 h 40 min"."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def listed(words: Iterable[object]) -> str:
    """ "2, 3 and 4"."""
    *head, last = map(str, words)
    return f"{', '.join(head)} and {last}" if head else last


def plan_bits(name: str) -> tuple[int, int, int] | None:
    """(weights, activations, KV cache) of a uniform plan's name, 16 for untouched; None for other names. Of a
    vision-language model a uniform plan leaves vision at 8 bits."""
    match = _PLAN.fullmatch(name)
    return tuple(int(bits or 16) for bits in match.groups()) if match else None  # type: ignore[return-value]


def by_width(names: Iterable[str]) -> list[str]:
    """Plan names in the order of a table: widest weights first within the same activations, other names
    last, in the order in which they come."""

    def key(name: str) -> tuple[int, ...]:
        bits = plan_bits(name)
        if bits is None:
            return (1,)
        mixed = bits[0] != bits[1] and bits[1] != 16
        return (0, -bits[2], bits[1] != 16, mixed, -bits[0], -bits[1])

    return sorted(names, key=key)


def without_folder(text: str) -> str:
    """A built-in's name or hub id as it is; of a path, the last part: names travel in files, paths do not."""
    if text.startswith(("/", "~", ".")) or "\\" in text or re.match(r"[A-Za-z]:", text):
        return Path(text.replace("\\", "/")).name or text
    return text
