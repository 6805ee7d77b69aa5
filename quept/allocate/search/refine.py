"""Better plans than the table can find, by measuring whole ones: a search that is bounded in time.

    for trial in refine(elastic, start, budget, search, fresh, table=table, seconds=60):
        trial.plan, trial.kl                    # the best plan so far, on the windows of `search`
    trial.verified["refined"]["kl"]             # the last one: on the windows of `fresh`, which it never saw

Isolated sensitivities do not add up below 5 bits, so the plan that the table likes best may lose to a
uniform one. The search therefore starts from the best of several: the plan it is given, every uniform plan
that fits the budget (all layers at b bits, embeddings at e), and uniform plans whose spare bytes raise some
layers by a bit. From there on each candidate is an exact allocation under costs that whole plans have
corrected (see `correction`): usually on a draw from what is still uncertain, sometimes on the most likely
costs. Half of the candidates keep the best plan's first blocks, so that their passes start further down.

On pictures and questions the search goes downhill from there, by the gradient of the mean KL at the best plan
(see `slopes`), before it draws, and again whenever a draw has won; uniform plans are not raised then.

Candidates race (see `race`): whoever falls behind the best plan on the windows both have seen is dropped,
and a new best plan has to win on all of them together. What wins among hundreds wins a little by luck, so
in the end the given plan, the best uniform one and the best found are measured on other windows, and the
final trial's plan is the one that wins there; where that is by less than the standard error of the difference
(paired by windows where there are enough), the given plan, which no text was searched for, stays.

Every measurement is appended to `resume`, a JSON-lines file that any number of searches on the same model may
share, and read from there before anything is measured. The path depends on the metrics and the seed alone:
the same search gives the same plans again, and the clock only decides where it ends. Closing the generator
stops it after the current pass. No candidate passes the budget or breaks a constraint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from quept.evaluate.forward import Gate
from quept.evaluate.reference import Reference
from quept.evaluate.tasks import EvalTask
from quept.plan import PrecisionPlan
from quept.runtime.model import ElasticModel
from quept.runtime.sizes import Sizes

from ..sensitivity.table import FULL_PRECISION, SensitivityTable
from ..solve.constraints import FREE, AllocationError, Constraints
from .on_data import DataMeter
from .race import MeasurementLog, Meter, Race
from .slopes import Descent, has_slopes, slopes
from .space import Space, stand_in

SPREADS = (0.5, 0.7, 1.0, 1.5, 2.5)  # of a draw; the wider ones where the narrow give plans seen before
GREEDY = 4  # every so manyth candidate is what the most likely costs say
LATE = 0.5  # share of candidates that keep the best plan's first blocks
UNIFORM, RAISED = 3, 2  # uniform plans to start from at most, and how many of them with their bytes used up
STUCK = 20  # attempts in a row that gave nothing new
SLACK = 1.15  # time to verify over that of its passes


@dataclass(frozen=True)
class Trial:
    """Where the search stands. plan: the best so far; kl: its mean on the search windows, beside that of the
    given plan (start_kl) and of the best uniform plan (uniform_kl; None where none fits). tried: plans
    measured, wholly or in part. fraction: of the time or the trials. stage: what is done, for people.

    final: the last one; `verified` then holds an Estimate's metrics on the fresh windows for "refined" (the
    best found), "start" (the given plan) and "uniform" (where one fits), and `chosen` says which of them
    `plan` is."""

    plan: PrecisionPlan
    kl: float
    start_kl: float
    uniform_kl: float | None
    tried: int
    seconds: float
    fraction: float
    stage: str
    final: bool = False
    chosen: str = "refined"
    verified: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def refine(
    elastic: ElasticModel,
    start: PrecisionPlan,
    budget: int,
    search: Reference | EvalTask,
    fresh: Reference | EvalTask,
    *,
    table: SensitivityTable | None = None,
    constraints: Constraints = FREE,
    others: Sequence[PrecisionPlan] = (),
    seconds: float | None = 60.0,
    trials: int | None = None,
    seed: int = 0,
    gate: Gate = nullcontext,
    sizes: Sizes | None = None,
    resume: str | Path | None = None,
) -> Iterator[Trial]:
    """Search from `start`, a plan within the budget (bytes of `sizes.deploy`), and from `others`; one Trial
    after every pass.

    search, fresh: references of the windows to search and to verify on; of a model that sees, its task on the
    data to search on, and on more of them. table: sensitivities around full
    precision; without one, smaller layers and higher widths are taken to cost less. seconds: for all of it,
    the verification included; at the least the start and one uniform plan are measured. trials: plans
    measured at most. gate: held during each pass with its comparison. sizes: what the budget counts (see
    quept.allocate.solve.container), `elastic.sizes` unless given.

    AllocationError when a plan is over the budget or breaks a constraint; RefineError when `resume` holds
    metrics of another model; ValueError when a window is in both references, or nothing bounds the
    search."""
    began = time.perf_counter()
    if seconds is None and trials is None:
        raise ValueError("a search needs a bound: give seconds, trials or both")
    if table is not None and table.base != FULL_PRECISION:
        raise AllocationError(f"refining needs sensitivities around full precision, not around {table.base}")
    sizes = sizes or elastic.sizes
    space = Space.of(elastic, table or stand_in(sizes), constraints, budget, sizes)
    given, others = space.picks_of(start), [space.picks_of(plan) for plan in others]
    log = MeasurementLog(resume, elastic)
    race = Race(_meter(search, fresh)(elastic, search, space, log, start, gate))
    uniform: np.ndarray | None = None

    def trial(stage: str, **final) -> Trial:
        elapsed, best = time.perf_counter() - began, given if race.best is None else race.best
        bounds = [elapsed / seconds if seconds else 0.0, len(race.seen) / trials if trials else 0.0]
        return Trial(
            plan=final.pop("plan", None) or space.plan(best, start),
            kl=race.mean(best),
            start_kl=race.mean(given),
            uniform_kl=None if uniform is None else race.mean(uniform),
            tried=len(race.seen),
            seconds=elapsed,
            fraction=1.0 if final else min(1.0, max(bounds)),
            stage=stage,
            **final,
        )

    def over() -> bool:
        verifying = SLACK * 3 * race.meter.passes(fresh) * race.meter.pass_seconds
        late = seconds is not None and time.perf_counter() - began + verifying > seconds
        return late or (trials is not None and len(race.seen) >= trials)

    for _ in race.run(given, None):
        yield trial("measuring plans to start from")
    starts = space.uniform_plans()[:UNIFORM]
    for *_, picks in starts:
        if uniform is not None and over():
            break
        for won in race.run(picks, uniform):
            uniform = picks if won else uniform
            yield trial("measuring plans to start from")
    downhill = None
    if has_slopes(elastic, search, start):
        downhill = Descent(space, partial(slopes, elastic, space, losses=race.meter.losses))
    raised = (p for b, e, _ in starts[:RAISED] for p in space.raised(b, e))
    for picks in (*others, *(() if downhill else raised)):
        if over():
            break
        if picks.tobytes() in race.seen:
            continue
        for _ in race.run(picks, race.best):
            yield trial("measuring plans to start from")

    rng, stuck, attempt = np.random.default_rng(seed), 0, 0
    while stuck < STUCK and not over():
        picks = downhill and downhill.step(race.best, lambda picks: picks.tobytes() in race.seen)
        if picks is None:
            picks = candidate(space, race, rng, greedy=attempt % GREEDY == 0)
            attempt += 1
        if picks is None:
            stuck += 1
            continue
        stuck = 0
        for _ in race.run(picks, race.best):
            yield trial("searching")

    finalists = {"refined": race.best, "start": given}
    if uniform is not None:
        finalists["uniform"] = uniform
    measured: dict[bytes, dict[str, float]] = {}
    for picks in finalists.values():
        if picks.tobytes() not in measured:
            for estimate in race.meter.verify(picks, fresh):
                measured[picks.tobytes()] = estimate
                yield trial("checking on text that the search never saw")
    verified = {name: measured[picks.tobytes()] for name, picks in finalists.items()}
    chosen = min(verified, key=lambda name: verified[name]["kl"])  # of equals the first: refined
    error = race.meter.error_between(finalists[chosen], given, fresh)
    if error is None:
        error = verified[chosen].get("kl_se", 0.0)
    if verified["start"]["kl"] - verified[chosen]["kl"] < error:
        chosen = "start"
    plan = space.plan(finalists[chosen], start)
    yield trial("done", plan=plan, final=True, chosen=chosen, verified=verified)


def _meter(search: Reference | EvalTask, fresh: Reference | EvalTask) -> type[Meter] | type[DataMeter]:
    """What measures on these; ValueError where windows are the same."""
    if isinstance(search, EvalTask):
        return DataMeter
    if set(map(tuple, search.windows.ids.tolist())) & set(map(tuple, fresh.windows.ids.tolist())):
        raise ValueError("the windows to verify on must be others than those to search on")
    return Meter


def candidate(space: Space, race: Race, rng: np.random.Generator, greedy: bool) -> np.ndarray | None:
    """A plan that was not measured yet, or None where no draw gives one."""
    posterior, kept = race.posterior(), None
    if space.blocks > 1 and rng.random() < LATE:
        kept = np.where(space.place < rng.integers(1, space.blocks), race.best, -1)  # the embeddings too
    for spread in (0.0, *SPREADS) if greedy else SPREADS:
        picks = space.allocate(posterior.costs(spread, rng), kept)
        if picks is not None and picks.tobytes() not in race.seen:
            return picks
    return None
