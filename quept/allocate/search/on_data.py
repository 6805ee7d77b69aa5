"""Measuring candidates of a model that sees: by whole passes over pictures or questions, which are short.

`DataMeter` is to a task what `race.Meter` is to windows of text. All of the search's data are one window, so
that a race is decided after one pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from quept.evaluate.forward import Gate, NonFiniteLogits
from quept.evaluate.tasks import EvalTask
from quept.plan import PrecisionPlan
from quept.runtime.model import ElasticModel

from .race import HIGHEST, MeasurementLog
from .space import Space


@dataclass
class DataMeter:
    """kl(picks, 0) of plans on the data of `search`; see `race.Meter`."""

    elastic: ElasticModel
    search: EvalTask
    space: Space
    log: MeasurementLog
    cached: PrecisionPlan
    gate: Gate
    pass_seconds: float = 0.0

    windows = 1

    def passes(self, fresh: EvalTask) -> float:
        """How many passes over the search's data verifying on `fresh` takes."""
        return fresh.total / self.search.total

    def kl(self, picks: np.ndarray, window: int) -> float:
        """Mean KL from full precision; infinite where the plan's answer is not finite."""
        plan = self.space.plan(picks, self.cached)
        key = plan.key(self.elastic.layers), self.search.id, window
        if key not in self.log.windows:
            began, kl = time.perf_counter(), self._last(plan, self.search)["kl"]
            self.pass_seconds = time.perf_counter() - began
            self.log.add_window(*key, kl)
        return self.log.windows[key]

    def losses(self, model: nn.Module) -> Iterator[Tensor]:
        """Yields parts of the mean KL, batch by batch, with their gradient; the gate is held until the next
        one is asked for."""
        parts = self.search.divergences(model)
        while True:
            with self.gate():
                if (kl := next(parts, None)) is None:
                    return
                yield kl.sum() / self.search.total

    def keep(self, picks: np.ndarray) -> None:
        """Nothing is kept: every pass begins at the first block."""

    def verify(self, picks: np.ndarray, fresh: EvalTask) -> Iterator[dict]:
        """The payload on the fresh data."""
        plan = self.space.plan(picks, self.cached)
        key = plan.key(self.elastic.layers), fresh.id
        if key not in self.log.estimates:
            self.log.add({"plan": key[0], "windows": key[1], "estimate": self._last(plan, fresh)})
        yield self.log.estimates[key]

    def error_between(self, one: np.ndarray, other: np.ndarray, fresh: EvalTask) -> None:
        """Not known: a task keeps no scores of single samples."""

    def _last(self, plan: PrecisionPlan, task: EvalTask) -> dict:
        try:
            *_, last = task.estimates(self.elastic.view(plan), plan, self.gate)
        except NonFiniteLogits:
            return {"tokens": 0, "kl": HIGHEST}
        payload = last.to_dict()
        return payload if math.isfinite(payload["kl"]) else {"tokens": 0, "kl": HIGHEST}
