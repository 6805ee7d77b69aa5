"""Measuring candidates against the best plan so far, window by window, and remembering every measurement.

A candidate's pass over a window starts at the first block in which it differs from the best plan, from the
hidden state that the best plan's own pass left there (`Meter`). It runs on the windows in turn, beginning
with another one each time, and drops out when it is behind the best plan on the windows both have seen
(`Race`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quept.evaluate.forward import Gate, NonFiniteLogits, pause_of, pausing, window_logits
from quept.evaluate.intervals import mean_and_error
from quept.evaluate.reference import Reference
from quept.evaluate.token_scores import compare, divergence
from quept.files import append_line, dtype_name, resume_lines
from quept.models.clone import clone
from quept.plan import PrecisionPlan
from quept.runtime.model import ElasticModel

from ..sensitivity.passes import Given, Kept
from .correction import Posterior, fit
from .space import Space

BEHIND = 0.01  # of log KL: by how much a candidate may be behind and still see the next window
NOISE, WINDOW_NOISE = 0.02, 0.04  # of log KL: how far the model of costs is off, and how far one window is
LOWEST, HIGHEST = 1e-9, 1e3  # what a KL counts as at least and at most where its logarithm is taken
RECENT = 0.2  # weight of the latest pass in the running mean of their seconds
PAIRED = 4  # windows from which the error of a difference can be told from them
KEPT_STATES = 2_000_000_000  # bytes of hidden states; where all windows' would take more, none are kept


class RefineError(ValueError):
    """What was kept to go on from is of another measurement; the message says what to do."""


class MeasurementLog:
    """Mean KL by (plan key, windows id, window), and whole estimates by (plan key, windows id); each is one
    JSON line of a file that searches on the same weights share. A broken last line is what a killed run
    leaves."""

    def __init__(self, path: str | Path | None, elastic: ElasticModel):
        self.windows: dict[tuple[str, str, int], float] = {}
        self.estimates: dict[tuple[str, str], dict[str, float]] = {}
        self._path = path
        if not path:
            return
        head = {
            "measurement": "KL of whole plans",
            "version": 1,
            "weights": elastic.identity,
            "group": elastic.artifact.group,
            "dtype": dtype_name(elastic.dtype),
        }
        for row in resume_lines(path, head, RefineError):
            self._keep(row)

    def add(self, row: Mapping) -> None:
        self._keep(row)
        if self._path:
            append_line(self._path, row)

    def add_window(self, plan: str, windows: str, window: int, kl: float) -> None:
        self.add({"plan": plan, "windows": windows, "window": window, "kl": kl if kl < HIGHEST else None})

    def _keep(self, row: Mapping) -> None:
        if "estimate" in row:
            self.estimates[row["plan"], row["windows"]] = dict(row["estimate"])
        else:  # null: it was not finite
            kl = math.inf if row["kl"] is None else row["kl"]
            self.windows[row["plan"], row["windows"], row["window"]] = kl


@dataclass
class Meter:
    """kl(picks, window) of plans on the windows of `search`. Call keep(picks) for the plan whose hidden
    states later passes shall start from, right after it was measured. cached: a plan whose KV cache all of
    them have."""

    elastic: ElasticModel
    search: Reference
    space: Space
    log: MeasurementLog
    cached: PrecisionPlan
    gate: Gate
    pass_seconds: float = 0.0  # of a pass over one window lately
    _base: np.ndarray | None = None
    _states: dict[int, list[Tensor]] = field(default_factory=dict)
    _latest: dict[int, list[Tensor]] = field(default_factory=dict)
    _latest_of: np.ndarray | None = None

    @property
    def windows(self) -> int:
        return len(self.search)

    def passes(self, fresh: Reference) -> float:
        """How many passes over a window verifying on `fresh` takes."""
        return len(fresh)

    def kl(self, picks: np.ndarray, window: int) -> float:
        """Mean KL from full precision on one window; infinite where the plan's answer is not finite."""
        plan = self.space.plan(picks, self.cached)
        key = plan.key(self.elastic.layers), self.search.windows.id, window
        if key not in self.log.windows:
            self.log.add_window(*key, self._measured(plan, picks, window))
        return self.log.windows[key]

    def keep(self, picks: np.ndarray) -> None:
        """Later passes start from this plan's hidden states, where they were seen."""
        measured_last = self._latest_of is not None and np.array_equal(self._latest_of, picks)
        self._base, self._states = picks, self._latest if measured_last else {}
        self._latest, self._latest_of = {}, None

    def verify(self, picks: np.ndarray, fresh: Reference) -> Iterator[dict[str, float]]:
        """The running Estimate on the fresh windows, as a dict; the last one is of all of them. The log has
        each window's by itself, too."""
        plan = self.space.plan(picks, self.cached)
        key = plan.key(self.elastic.layers), fresh.windows.id
        if key in self.log.estimates and self._by_window(picks, fresh)[-1] < math.inf:
            yield self.log.estimates[key]
            return
        estimate, view, whole = {}, self.elastic.view(plan), 0.0
        passes = divergence(view, fresh, fresh.windows, self._make_cache(plan), self.gate)
        try:
            for window, running in enumerate(passes):
                before, whole = whole, running.kl * (window + 1)
                self.log.add_window(*key, window, whole - before)
                estimate = running.to_dict()
                yield estimate
        except NonFiniteLogits:
            estimate = {"tokens": 0, "kl": HIGHEST}
            yield estimate
        self.log.add({"plan": key[0], "windows": key[1], "estimate": estimate})

    def error_between(self, one: np.ndarray, other: np.ndarray, fresh: Reference) -> float | None:
        """Standard error of the difference of two verified plans' KL, paired by windows: what makes a window
        hard does so for both. NaN where one of them was not finite, None of too few windows."""
        if len(fresh) < PAIRED:
            return None
        mine, theirs = (torch.tensor(self._by_window(picks, fresh)) for picks in (one, other))
        return mean_and_error(mine - theirs)[1]

    def _by_window(self, picks: np.ndarray, fresh: Reference) -> list[float]:
        """KL on each of the fresh windows; infinite where it was not measured."""
        key = self.space.plan(picks, self.cached).key(self.elastic.layers), fresh.windows.id
        return [self.log.windows.get((*key, window), math.inf) for window in range(len(fresh))]

    def _make_cache(self, plan):
        return (lambda: self.elastic.make_cache(plan)) if plan.rounds_cache else None

    def _measured(self, plan, picks: np.ndarray, window: int) -> float:
        view, windows = self.elastic.view(plan), self.search.windows
        reference = self.search.window(window, self.gate)
        began = time.perf_counter()
        with self.gate() as turn, torch.inference_mode():
            if plan.rounds_cache:
                logits = window_logits(view, windows.ids[window], self._make_cache(plan), turn)
            else:
                logits = self._started_late(view, picks, window, turn)
            scores = compare(logits[:-1], reference, windows.targets[window], pause_of(turn))
            kl = scores.kl.double().mean().item()
        seconds = time.perf_counter() - began
        self.pass_seconds += (seconds - self.pass_seconds) * (RECENT if self.pass_seconds else 1.0)
        return kl if math.isfinite(kl) else math.inf

    def _started_late(self, view, picks: np.ndarray, window: int, turn: object) -> Tensor:
        """Logits (context, vocabulary), computed from the first block on that differs from the base plan."""
        if self._latest_of is None or not np.array_equal(self._latest_of, picks):
            self._latest, self._latest_of = {}, picks
        shared = 0 if self._base is None else self.space.shared(picks, self._base)
        states, seen = self._states.get(window, []), []
        names = [block.name for block in self.elastic.layout.blocks]
        first = max(0, min(shared, len(states) - 1))
        stubs = {name: Given(states[first]) for name in names[:first]}
        stubs |= {name: Kept(view.get_submodule(name), seen) for name in names[first:]}
        ids = self.search.windows.ids[window][None].to(self.elastic.device)
        model = clone(view, stubs)
        with pausing(model, turn):
            logits = model(input_ids=ids, use_cache=False).logits[0]
        if seen[0].nbytes * len(names) * len(self.search) <= KEPT_STATES:
            self._latest[window] = states[:first] + seen
            if len(states) <= shared < len(names):  # what the base plan's own pass would have left
                self._states[window] = self._latest[window][: shared + 1]
        return logits


@dataclass
class Race:
    """seen: KL by window of every plan that was measured, by its picks' bytes. best: the best one so far that
    saw all windows."""

    meter: Meter
    seen: dict[bytes, dict[int, float]] = field(default_factory=dict)
    best: np.ndarray | None = None

    @property
    def windows(self) -> int:
        return self.meter.windows

    def mean(self, picks: np.ndarray) -> float:
        """Mean KL over the windows that this plan saw."""
        row = self.seen.get(picks.tobytes())
        return sum(row.values()) / len(row) if row else math.inf

    def run(self, picks: np.ndarray, against: np.ndarray | None) -> Iterator[bool]:
        """Measure a plan on one window after another, for as long as it keeps up with the one it runs
        against (None: to the end); yields after every window whether it has won, which is only true at the
        end. The best plan of all is kept."""
        first = len(self.seen) % self.windows
        mine = self.seen.setdefault(picks.tobytes(), {})
        theirs = self.seen[against.tobytes()] if against is not None else {}
        for turn in range(self.windows):
            window = (first + turn) % self.windows
            if window not in mine:
                mine[window] = self.meter.kl(picks, window)
            whole = len(mine) == self.windows
            if whole and (self.best is None or self.mean(picks) < self.mean(self.best)):
                self.best = picks
                self.meter.keep(picks)
            yield whole and (not theirs or self.mean(picks) < self.mean(against))
            if theirs and _behind(mine, theirs) > BEHIND:
                return

    def posterior(self) -> Posterior:
        """The table's costs, corrected by all that was seen. A plan that saw some windows only is compared
        with the best one on those."""
        space, best = self.meter.space, self.seen[self.best.tobytes()]
        level = np.mean([_log(kl) for kl in best.values()])
        picks = np.stack([np.frombuffer(key, self.best.dtype) for key in self.seen])
        rows = list(self.seen.values())
        logs = np.array([level + _behind(row, best) for row in rows])
        noise = np.array([math.sqrt(NOISE**2 + WINDOW_NOISE**2 / len(row)) for row in rows])
        return fit(space.costs, space.factors, picks, logs, noise)


def _behind(mine: Mapping[int, float], theirs: Mapping[int, float]) -> float:
    """Mean over the windows of `mine` of log KL, less that of `theirs`."""
    return sum(_log(kl) - _log(theirs[window]) for window, kl in mine.items()) / len(mine)


def _log(kl: float) -> float:
    return math.log(min(max(kl, LOWEST), HIGHEST))
