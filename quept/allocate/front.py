"""The measured Pareto front of a model: the best plan found for each of several budgets, as a file.

    front = measure_front(elastic, table, search, shown, out="front.json", model="smollm2-135m", text="boolq")

For each budget, from the smallest on: allocate from the table, refine on the windows of `search` (the plan of
the budget before takes part, so what was won once is not lost), and measure on those of `shown`, which the
search never sees. A model that sees has its task in both places, on some of the data and on all of them. A
plan that another one beats there in both bytes and KL is not on the front; it is kept beside it, under
"dominated", so that a run which is started again knows that its budget is done.

The file, written after every plan:

    {"format": "quept-front", "version": 1, "model", "weights" and "artifact":
     `ElasticModel.identity`, "group", "data": id of the windows measured on,
     "conditions": {"text", "tokens", "context", "dtype", "searched", "seconds", "trials", "seed"},
     "plans": [{"name": "best 3.5 bits", "budget", "bytes", "bits_per_parameter", "chosen",
                "predicted": {"kl", "ppl", "same_top"} or {}, "measured": an Estimate,
                "uniform": the same of the best uniform plan that fits or null,
                "plan": a plan file}, ...], "dominated": [...]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from quept.checked import Count, Group, Number, Positive, checked, form
from quept.evaluate.forward import Gate
from quept.evaluate.reference import Reference
from quept.evaluate.results import ResultKey
from quept.evaluate.tasks import EvalTask, estimate_of
from quept.evaluate.tasks.agreement import Agreement
from quept.evaluate.token_scores import Estimate
from quept.files import dtype_name, parse_json, read_bytes, write_atomic
from quept.plan import PrecisionPlan
from quept.runtime.model import ElasticModel

from .search.refine import refine
from .sensitivity.table import SMALLEST, SensitivityTable
from .solve.constraints import FREE, AllocationError, Constraints
from .solve.solver import allocate

FORMAT, VERSION = "quept-front", 1
BITS = (2.5, 2.75, 3.0, 3.25, 3.5, 4.0, 5.0, 6.0, 8.0)  # per parameter
CHOSEN = ("refined", "start", "uniform")
COMPARED = 3  # plans, at least, by which predictions are judged

Progress = Callable[[str, float | None], None]


# What a plan measured: on a text, and on other data, which is read by its task.
_OF_TEXT = form(**dict.fromkeys(Estimate.__dataclass_fields__, Number) | {"tokens": Count})
_OF_DATA = dict[str, Any]


def _form(estimate: Any) -> Any:
    """The form of a front whose plans measured this."""
    point = form(
        name=str,
        budget=Count,
        bytes=Count,
        bits_per_parameter=Positive,
        chosen=Literal[CHOSEN],
        predicted=dict[str, Number],
        measured=estimate,
        uniform=estimate | None,
        plan=dict[str, Any],
    )
    return form(
        format=str,
        version=int,
        model=str,
        weights=str,
        artifact=str,
        group=Group,
        data=str,
        conditions=dict[str, Any],
        plans=list[point],
        dominated=list[point],
    )


class FrontError(ValueError):
    """A front that cannot be read or made; the message says why."""


@dataclass(frozen=True)
class Point:
    """One plan of the front. budget, bytes: what was allowed and what it takes. chosen: what won in the end,
    see `refine.Trial`. predicted: from the table, empty where it says nothing. measured: on the shown text,
    or the data of a model that sees; uniform: the best uniform plan within the budget on the same, None where
    none fits."""

    name: str
    budget: int
    bytes: int
    bits_per_parameter: float
    chosen: str
    predicted: Mapping[str, float]
    measured: Estimate | Agreement
    uniform: Estimate | Agreement | None
    plan: PrecisionPlan

    def to_dict(self) -> dict[str, Any]:
        uniform = self.uniform.to_dict() if self.uniform else None
        return {
            "name": self.name,
            "budget": self.budget,
            "bytes": self.bytes,
            "bits_per_parameter": self.bits_per_parameter,
            "chosen": self.chosen,
            "predicted": dict(self.predicted),
            "measured": self.measured.to_dict(),
            "uniform": uniform,
            "plan": json.loads(self.plan.to_json()),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Point:
        """What `to_dict` writes, in the form of `_form`; ValueError for no plan, or no estimate."""
        return cls(
            data["name"],
            data["budget"],
            data["bytes"],
            data["bits_per_parameter"],
            data["chosen"],
            data["predicted"],
            estimate_of(data["measured"]),
            data["uniform"] and estimate_of(data["uniform"]),
            PrecisionPlan.from_json(json.dumps(data["plan"])),
        )


@dataclass(frozen=True)
class Front:
    """points: ascending in bytes and falling in KL. dominated: measured, and beaten by one of the points. The
    rest names what was measured, see the module docstring."""

    model: str
    weights: str
    artifact: str
    group: int | str
    data: str
    conditions: Mapping[str, Any]
    points: tuple[Point, ...] = ()
    dominated: tuple[Point, ...] = ()

    def with_point(self, point: Point) -> Front:
        """With one more plan; whatever is beaten goes to `dominated`."""
        every = sorted(
            (*self.points, *self.dominated, point), key=lambda p: (p.bytes, p.measured.kl, p.budget)
        )
        kept: list[Point] = []
        for p in every:
            if not kept or p.measured.kl < kept[-1].measured.kl:
                kept.append(p)
        beaten = tuple(p for p in every if not any(p is q for q in kept))
        return replace(self, points=tuple(kept), dominated=beaten)

    def of(self, elastic: ElasticModel) -> Front | None:
        """This front as one of this model; None if it was measured on another one."""
        if not elastic.is_named(self.artifact):
            return None
        return replace(self, weights=elastic.identity, artifact=elastic.identity)

    def off_by(self, table: SensitivityTable) -> float | None:
        """The factor by which the table's KL is typically off on the plans measured here (root mean square of
        logarithms): 1.2 where 0.10 was predicted and 0.083 or 0.12 found. None where fewer than three can be
        compared."""
        plans = [p for p in (*self.points, *self.dominated) if p.measured.kl > 0 and table.covers(p.plan)]
        if not table.uniform or len(plans) < COMPARED:
            return None
        found = [math.log(p.measured.kl / max(table.predicted(p.plan)["kl"], SMALLEST)) for p in plans]
        return math.exp(math.sqrt(math.fsum(x * x for x in found) / len(found)))

    def results(self, layers: Sequence[str]) -> Iterator[tuple[str, ResultKey, dict[str, float]]]:
        """(name, key, payload) of every measured plan, as a results store takes them."""
        for point in self.points:
            key = ResultKey(point.plan.key(layers), self.artifact, self.data, self.conditions["dtype"])
            yield point.name, key, point.measured.to_dict()

    def to_json(self) -> str:
        """The file: one line a plan."""
        head = {"format": FORMAT, "version": VERSION}
        names = ("model", "weights", "artifact", "group", "data")
        head |= {name: getattr(self, name) for name in names} | {"conditions": dict(self.conditions)}
        body = json.dumps(head, indent=1).removesuffix("\n}")
        for key, points in (("plans", self.points), ("dominated", self.dominated)):
            rows = ",\n  ".join(json.dumps(point.to_dict(), allow_nan=False) for point in points)
            body += f',\n "{key}": [' + (f"\n  {rows}\n ]" if rows else "]")
        return body + "\n}\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Front:
        """Read what `to_json` writes; FrontError with a sentence for anything else."""
        data = parse_json(text, "a front", FORMAT, VERSION, FrontError)
        plans, on_text = data.get("plans"), True
        if isinstance(plans, list) and plans and isinstance(plans[0], dict):
            on_text = "top1" not in (plans[0].get("measured") or {})
        data = checked(data, _form(_OF_TEXT if on_text else _OF_DATA), "this front", FrontError)
        try:
            points = [tuple(map(Point.from_dict, data[key])) for key in ("plans", "dominated")]
        except ValueError as error:
            raise FrontError(f"this front is damaged: {error}") from None
        for a, b in zip(points[0], points[0][1:], strict=False):
            if not (a.bytes < b.bytes and a.measured.kl > b.measured.kl):
                raise FrontError(
                    f"this front is damaged: {b.name!r} is not better and larger than {a.name!r}"
                )
        names = ("model", "weights", "artifact", "group", "data", "conditions")
        return cls(*(data[name] for name in names), *points)

    def save(self, path: str | Path) -> None:
        """Write the file; it appears whole or not at all."""
        write_atomic(path, self.to_json())


def load_front(path: str | Path) -> Front:
    """Read a file; FrontError names it."""
    content = read_bytes(path, "a front", FrontError)
    try:
        return Front.from_json(content)
    except FrontError as error:
        raise FrontError(f"{path}: {error}") from None


def fitting_front(path: str | Path | None, elastic: ElasticModel) -> Front | None:
    """The front in a file, if one is given and it was measured on this very model."""
    return load_front(path).of(elastic) if path else None


def measure_front(
    elastic: ElasticModel,
    table: SensitivityTable,
    search: Reference | EvalTask,
    shown: Reference | EvalTask,
    bits: Iterable[float] = BITS,
    *,
    constraints: Constraints = FREE,
    seconds: float | None = 300.0,
    trials: int | None = None,
    seed: int = 0,
    model: str = "",
    text: str = "text",
    searched: str = "text",
    out: str | Path | None = None,
    resume: str | Path | None = None,
    gate: Gate = nullcontext,
    progress: Progress | None = None,
) -> Front:
    """The front over budgets in bits per parameter; those that no plan fits are left out.

    seconds, trials, seed: of the search for each budget, see `refine`. model, text, searched: names for the
    file. out: written after every plan; what it holds of the same measurement is not measured again.
    resume: the metrics of single plans, see `refine`. FrontError when `out` holds another measurement, or
    when no budget is large enough."""
    budgets = sorted({float(b) for b in bits})
    data, conditions = _measured_on(search, shown, text, searched)
    conditions |= {"dtype": dtype_name(elastic.dtype), "seconds": seconds, "trials": trials, "seed": seed}
    front = Front(
        model or elastic.source,
        elastic.identity,
        elastic.identity,
        elastic.artifact.group,
        data,
        conditions,
    )
    if out is not None and Path(out).exists():
        front = _continued(load_front(out).of(elastic), front, out)
    done = {point.budget: point for point in (*front.points, *front.dominated)}
    before: PrecisionPlan | None = None
    for number, b in enumerate(budgets):
        budget = math.floor(b * elastic.sizes.parameters / 8)
        point = done.get(budget)
        if point is None:
            try:
                start = allocate(table, elastic.sizes, budget, constraints).plan
            except AllocationError:
                continue
            for trial in refine(
                elastic,
                start,
                budget,
                search,
                shown,
                table=table,
                constraints=constraints,
                others=[before] if before is not None else [],
                seconds=seconds,
                trials=trials,
                seed=seed,
                gate=gate,
                resume=resume,
            ):
                if progress:
                    stage = f"{_name(b)}: {trial.stage}, KL {trial.kl:.4f}"
                    progress(stage, (number + trial.fraction) / len(budgets))
            point = _point(elastic, table, b, budget, trial)
            front = front.with_point(point)
            if out is not None:
                front.save(out)
        before = point.plan
    if before is None:
        raise FrontError(f"no plan fits even {budgets[-1]:g} bits per parameter: give larger budgets")
    return front


def _measured_on(
    search: Reference | EvalTask, shown: Reference | EvalTask, text: str, searched: str
) -> tuple[str, dict[str, Any]]:
    """Identity of the shown data, and what belongs beside the numbers."""
    if isinstance(shown, EvalTask):
        text, among = shown.conditions["data"], search.conditions["data"]
        on = "them" if among == text else among
        return shown.id, {
            "text": text,
            "tokens": shown.total,
            "searched": f"the first {search.total:,} of {on}",
        }
    one, other = search.windows, shown.windows
    on = f"{one.ids.numel():,} tokens of {searched}, context {one.context}"
    return other.id, {
        "text": text, "tokens": other.ids.numel(), "context": other.context, "searched": on
    }  # fmt: skip


def _point(elastic: ElasticModel, table: SensitivityTable, bits: float, budget: int, trial) -> Point:
    plan, uniform = replace(trial.plan, name=_name(bits)), trial.verified.get("uniform", {})
    return Point(
        plan.name,
        budget,
        elastic.sizes.deploy(plan),
        round(elastic.sizes.bits_per_parameter(plan), 4),
        trial.chosen,
        table.predicted(plan) if table.uniform and table.covers(plan) else {},
        estimate_of(trial.verified[trial.chosen]),
        estimate_of(uniform) if uniform.get("tokens") else None,
        plan,
    )


def _name(bits: float) -> str:
    return f"best {bits:g} bits"


def _continued(found: Front | None, wanted: Front, path: str | Path) -> Front:
    if found is None or replace(found, points=(), dominated=()) != wanted:
        raise FrontError(
            f"{path} holds a front of another model, text or search; delete it to start afresh, or choose "
            "another file"
        )
    return found
