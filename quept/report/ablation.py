"""Which part of a calibration pays: a recipe taken apart, as `benchmarks/ablation.py` measures it.

{"rtn": {"w8": 0.0017, "w2": 10.0}, "published": {"w8": …, "minutes": 4.1, "mb": 49.1}, …,
 "conditions": {"model": "smollm2-135m", …}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .words import number, short

VARIANTS = {  # the benchmark's names, in the order of the table
    "rtn": "rounded to nearest",
    "published": "as published",
    "no merging": "without token merging",
    "no clips": "without learned clips",
    "no ranks": "without adapters",
    "own ranks": "own adapters for each group of widths",
    "scales": "channel scales first",
    "end to end": "end to end instead of block by block",
    "scales, end to end": "channel scales, then end to end",
    "block-wise, end to end": "block by block, then end to end",
    "everything": "channel scales, block by block, then end to end",
}
EXPLAINED = (
    "As published: block-wise reconstruction, ranks shared between widths, learned clips, token merging; "
    "below it one part is left out or added. Mean KL from full precision."
)


@dataclass(frozen=True)
class Ablation:
    """rows: `{variant: {"w8", …, "minutes", "mb"}}` of what was measured, in the order of VARIANTS; note: the
    conditions, as text."""

    rows: Mapping[str, Mapping[str, float]]
    note: str

    @property
    def head(self) -> tuple[str, ...]:
        return ("calibrated", *(width.upper() for width in self._widths), "minutes", "MB")

    @property
    def cells(self) -> list[tuple[str, ...]]:
        columns = (*self._widths, "minutes", "mb")
        return [
            (VARIANTS[name], *(short(row.get(column)) for column in columns))
            for name, row in self.rows.items()
        ]

    @property
    def markdown(self) -> str:
        lines = (self.head, ("---",) * len(self.head), *self.cells)
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    @property
    def _widths(self) -> list[str]:
        found = {key for row in self.rows.values() for key in row if key.startswith("w")}
        return sorted(found, key=lambda key: -int(key[1:]))


def read_ablation(path: Path | None) -> Ablation | None:
    """Of a file that comes with a model; None without one."""
    return path and ablation_of(json.loads(path.read_text("utf-8")))


def ablation_of(data: Mapping[str, Any]) -> Ablation | None:
    """What a file's JSON object says; None where it is no ablation."""
    rows = {name: _row(data[name]) for name in VARIANTS if isinstance(data.get(name), dict)}
    rows = {name: row for name, row in rows.items() if any(key.startswith("w") for key in row)}
    conditions = data.get("conditions")
    if not rows or not isinstance(conditions, dict):
        return None
    said = (f"{name} {value}" for name, value in conditions.items() if isinstance(value, str | int | float))
    return Ablation(rows, "; ".join(said))


def _row(entry: Mapping[str, Any]) -> dict[str, float]:
    """Widths, minutes and megabytes that are numbers."""
    wanted = {*(f"w{bits}" for bits in range(2, 9)), "minutes", "mb"}
    return {key: value for key in wanted if (value := number(entry.get(key))) is not None}
