"""A visitor's refinement: the plan on the faders made better by measuring whole plans, for a minute.

It searches on windows of the measuring text that come after those which the pages show numbers of, and checks
what it found on windows that it has not seen either; so neither takes part in the choice that the pages'
numbers judge. A model that sees has no more data than those: it searches on half of them and checks on all.
Every forward pass is one turn at the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from quept.allocate.search.refine import Trial, refine
from quept.allocate.solve.solver import allocate
from quept.evaluate import EvalTask, Reference, TextTask
from quept.export import exporter
from quept.plan import PrecisionPlan

from .budget import Tabled, budget_of, limits_of, sentence, table_of
from .payloads import BudgetRequest

SECONDS = 60.0
WINDOWS = 4  # to search on; as many again to check on


class Measured(Tabled, Protocol):
    """An opened model, and the first of its tasks."""

    task: EvalTask


class _Stopped(Exception):
    """The search was ended between two turns at the gate."""


@dataclass(frozen=True)
class Refined:
    """How far a refinement is: what the browser shows (see components/budget.py), and at its end the plan."""

    state: dict[str, Any]
    plan: PrecisionPlan | None = None


def refinement(
    opened: Measured,
    plan: PrecisionPlan,
    request: Mapping[str, Any],
    gate: Callable[[], AbstractContextManager],
    stopped: Callable[[], bool],
    seconds: float = SECONDS,
) -> Iterator[Refined]:
    """Search from `plan` within the request's budget and limits, until `seconds` are over or `stopped()`,
    which is asked before every turn at the gate. What cannot be refined ends with a sentence. A search that
    was stopped gives the best plan so far."""

    def turn() -> AbstractContextManager:
        if stopped():
            raise _Stopped
        return gate()

    trial = None
    state: dict[str, Any] = {"status": "running", "message": "Preparing", "limit": seconds, "fraction": 0.0}
    yield Refined(state)
    try:
        with closing(_trials(opened, plan, request, turn, seconds)) as trials:
            for trial in trials:
                if not trial.final:
                    yield Refined(state | _as_json(trial))
    except _Stopped:
        pass
    except ValueError as error:
        yield Refined(state | {"status": "error", "message": sentence(error)})
        return
    if trial is None:  # stopped before the first pass
        yield Refined(state | {"status": "cancelled", "message": "Stopped."})
        return
    status = "done" if trial.final else "cancelled"
    shown = _as_json(trial) | {"status": status, "better": _is_better(trial)}
    yield Refined(state | shown, trial.plan if shown["better"] else None)


def _trials(
    opened: Measured, plan: PrecisionPlan, request: Mapping[str, Any], gate, seconds: float
) -> Iterator[Trial]:
    elastic, asked = opened.elastic, BudgetRequest.read(request)
    table = table_of(opened, asked)
    sizes, constraints = limits_of(opened, asked)
    if asked.target:
        plan = exporter(asked.target).nearest(elastic, plan)
    chosen = sorted({*constraints.embeddings, plan.embeddings})  # what the plan has it may keep
    constraints = replace(constraints, embeddings=tuple(chosen))
    budget = max(budget_of(table, asked, sizes, constraints), sizes.deploy(plan))
    search, fresh = _data(opened.task)
    predicted = allocate(table, sizes, budget, constraints).plan
    limits = {"table": table, "constraints": constraints, "others": [predicted], "sizes": sizes}
    return refine(elastic, plan, budget, search, fresh, seconds=seconds, gate=gate, **limits)


def _data(task: EvalTask) -> tuple[Reference, Reference] | tuple[EvalTask, EvalTask]:
    """What to search and to check on: windows of a text that come after those that are shown; half of the
    pictures or questions, and all of them."""
    if isinstance(task, TextTask):
        return tuple(task.reference_on(task.windows_from(first, WINDOWS)) for first in (0, WINDOWS))
    return task.first(max(1, task.total // 2)), task


def _as_json(trial: Trial) -> dict[str, Any]:
    """A trial as the browser shows it: at the end the numbers of the windows that the search never saw."""
    kl, start, uniform = trial.kl, trial.start_kl, trial.uniform_kl
    if trial.final:
        seen = trial.verified
        kl, start = seen[trial.chosen]["kl"], seen["start"]["kl"]
        uniform = seen["uniform"]["kl"] if "uniform" in seen else None
    return {
        "message": "",
        "stage": trial.stage,
        "tried": trial.tried,
        "kl": kl,
        "start_kl": start,
        "uniform_kl": uniform,
        "seconds": trial.seconds,
        "fraction": trial.fraction,
    }


def _is_better(trial: Trial) -> bool:
    return trial.chosen != "start" if trial.final else trial.kl < trial.start_kl
