"""How a calibration went, from the progress.jsonl beside an artifact.

    {"what": "end to end", "step": 7, "of": 240, "losses": {"W2": 1.1, "mixed": 0.4}, "seconds": 9.8}
    {"what": "block", "block": "layers.3", "before": {"3,4": 0.02}, "after": {"3,4": 0.01}, "kept": true}
    {"what": "compared", "plan": "W6", "kl": 0.017, "kl_rtn": 0.013, "kept": false}
    {"what": "done", "seconds_per_stage": {"end to end": 2400.0}}

A run that was cut and resumed may say a thing twice; the last word counts. Lines of other kinds, and entries
that are no finite numbers, are passed over: a log is read for what it has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quept.calibrate.job import LOG
from quept.files import read_lines

from .words import number

_WIDTHS = re.compile(r"\d(,\d)*")


@dataclass(frozen=True)
class BlockLoss:
    """Loss of one block before and after its tuning, by bit group ("3,4 bits"); kept: whether it was."""

    before: Mapping[str, float]
    after: Mapping[str, float]
    kept: bool


@dataclass(frozen=True)
class Comparison:
    """Mean KL on held-out text of one plan as calibrated and as rounded to nearest, and whether it was
    kept."""

    kl: float
    kl_rtn: float
    kept: bool


@dataclass(frozen=True)
class Course:
    """steps: `{step: {plan name: loss}}` of the end-to-end stage. blocks: `{block: BlockLoss}`. compared:
    `{plan name: Comparison}`. seconds: of each stage."""

    steps: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    blocks: Mapping[str, BlockLoss] = field(default_factory=dict)
    compared: Mapping[str, Comparison] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def losses(self) -> dict[str, tuple[list[int], list[float]]]:
        """`{plan name: (its steps, ascending; their losses)}`."""
        series: dict[str, tuple[list[int], list[float]]] = {}
        for step in sorted(self.steps):
            for name, loss in self.steps[step].items():
                steps, losses = series.setdefault(name, ([], []))
                steps.append(step)
                losses.append(loss)
        return series


def read_course(folder: str | Path) -> Course | None:
    """The course in an artifact's folder; None if no log lies there."""
    path = Path(folder) / LOG
    if not path.is_file():
        return None
    steps, blocks, compared, seconds = {}, {}, {}, {}
    for line in read_lines(path):
        what = line.get("what")
        if what == "end to end" and number(line.get("step")) is not None:
            steps[int(line["step"])] = _numbers(line.get("losses"))
        elif what == "block":
            before, after = _groups(line.get("before")), _groups(line.get("after"))
            blocks[str(line.get("block"))] = BlockLoss(before, after, line.get("kept") is not False)
        elif what == "compared":
            kl, kl_rtn = number(line.get("kl")), number(line.get("kl_rtn"))
            if kl is not None and kl_rtn is not None:
                compared[str(line.get("plan"))] = Comparison(kl, kl_rtn, line.get("kept") is not False)
        elif what == "done":
            seconds = _numbers(line.get("seconds_per_stage"))
    return Course(steps, blocks, compared, seconds)


def _groups(table: object) -> dict[str, float]:
    """Losses of a block by bit group, which the log names by its widths: "7,8"."""
    losses = _numbers(table)
    return {f"{name} bits" if _WIDTHS.fullmatch(name) else name: loss for name, loss in losses.items()}


def _numbers(table: object) -> dict[str, float]:
    if not isinstance(table, dict):
        return {}
    return {name: value for name, value in table.items() if number(value) is not None}
