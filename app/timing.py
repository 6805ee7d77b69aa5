"""How fast a model answers here at each plan: measured once by answering, and predicted for other plans.

A token takes time for the bytes of the plan, which are read once, and for what does not depend on them: the
line through the plans measured so far, or, of a single one, the line through zero.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass

import torch

from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel, Sampling
from quept.runtime.generate import GenerationError

QUESTION = "Describe, step by step, how a bill becomes a law."
TOKENS = 24


@dataclass(frozen=True)
class Timed:
    """One plan: its bytes, seconds for each token of an answer, and until the first one."""

    size: int
    token_s: float
    first_s: float


class Timing:
    """The plans of one model that were timed in this process."""

    def __init__(self, elastic: ElasticModel):
        self._elastic = elastic
        self._timed: dict[str, Timed] = {}

    def knows(self, plan: PrecisionPlan) -> bool:
        """Whether the plan was timed, or no plan of this model can be."""
        return self._elastic.kind != "language" or self._key(plan) in self._timed

    def measure(self, plan: PrecisionPlan, gate: Callable[[], AbstractContextManager]) -> None:
        """Answers one question at the plan, a token at a time at the gate; waiting is not counted."""
        steps = self._elastic.stream(plan, QUESTION, Sampling(temperature=0.0, max_tokens=TOKENS))
        running = True
        with closing(steps), suppress(GenerationError):  # a plan that gives no finite numbers has no speed
            while running:
                with gate():
                    running = next(steps, None) is not None
        if rate := steps.stats.tokens_per_second:
            size = self._elastic.sizes.deploy(plan)
            self._timed[self._key(plan)] = Timed(size, 1 / rate, steps.stats.prefill_seconds)

    def of(self, plan: PrecisionPlan) -> dict | None:
        """What is known of a plan's speed; JSON. `line` is what the browser predicts from while dragging:
        seconds a token, and seconds a token and byte."""
        line = self.line
        if line is None:
            return None
        timed = self._timed.get(self._key(plan))
        token_s = timed.token_s if timed else line[0] + line[1] * self._elastic.sizes.deploy(plan)
        return {
            "tokens_per_s": 1 / token_s,
            "first_token_ms": timed and 1000 * timed.first_s,
            "origin": "measured" if timed else "predicted",
            "threads": torch.get_num_threads(),
            "line": line,
        }

    @property
    def line(self) -> tuple[float, float] | None:
        """(seconds, seconds a byte) of a token; None where nothing was timed."""
        points = list(self._timed.values())
        if not points:
            return None
        size, token_s = (
            sum(p) / len(points) for p in zip(*((t.size, t.token_s) for t in points), strict=True)
        )
        spread = sum((t.size - size) ** 2 for t in points)
        slope = sum((t.size - size) * (t.token_s - token_s) for t in points) / spread if spread else 0.0
        if slope <= 0 or slope * size > token_s:  # one plan, or timed amid other work
            return 0.0, token_s / size
        return token_s - slope * size, slope

    def _key(self, plan: PrecisionPlan) -> str:
        return self._elastic.filed_under(plan)[0]
