"""What a task is: it owns the data that a plan is measured on, full precision's answers to them and the KV
cache that the plan needs, and it yields estimates whose metrics are data.

    task = tasks_of(elastic)["text"]
    for estimate in task.estimates(elastic.view(plan), plan):      # better with every step, stop any time
        print(estimate.done, estimate.total, task.unit, [(m.label, m.value) for m in estimate.metrics])
    results.put(task.key(plan), estimate.to_dict())
    task.read(results.get(task.key(plan)).payload)                 # the same estimate again

A new task is one file with a subclass of `EvalTask` and one entry in the table in `tasks/__init__.py`: the
app, `quept evaluate` and the results store take whatever metrics it gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from quept.engines.reports import Reports
from quept.evaluate.forward import Gate, MakeCache
from quept.evaluate.results import ResultKey, Results
from quept.files import dtype_name
from quept.plan import PrecisionPlan

if TYPE_CHECKING:
    from quept.runtime import ElasticModel


@dataclass(frozen=True)
class Metric:
    """One number that a task measures. value: None where it is not known.

    name: its key, also in what a sensitivity table predicts; label, title: for people, short and in full.
    low, high: of a share its 95 % interval, of anything else the value less and plus one standard error.
    unit: "share" for 0 to 1, shown in percent; else what stands behind the number, or "".
    full: the value at full precision on the same data; a difference from it up to `margin` means nothing.
    note: what else there is to say, in few words; detail: at length, None for a metric that never has any.
    """

    name: str
    label: str
    title: str
    value: float | None
    better: Literal["lower", "higher"]
    low: float | None = None
    high: float | None = None
    unit: str = ""
    full: float | None = None
    margin: float | None = None
    note: str = ""
    detail: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TaskEstimate:
    """What a task found so far: `done` of `total` things are measured. payload: JSON, as it is stored."""

    metrics: tuple[Metric, ...]
    done: int
    total: int
    payload: Mapping[str, Any]

    def __getitem__(self, name: str) -> Metric:
        """The metric of this name; KeyError where the task has none."""
        return {metric.name: metric for metric in self.metrics}[name]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.payload)


class EvalTask(ABC):
    """See the module's docstring. Nothing is read or computed before it is asked for.

    name: its key in the table. kind: of the models that have it, `models` names them. unit: what is counted.
    options: what a person may give to say on which data, under the names of `quept evaluate`'s options; the
    values come in `given`. result: what a payload spells, whose `from_dict` raises for one that is no result.
    headline: the name of the metric that plans are compared by first.
    amount: which of the options says how many of the data are taken.
    cache: the folder of references, the ordinary one unless given.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    models: ClassVar[str]
    unit: ClassVar[str]
    result: ClassVar[type]
    options: ClassVar[tuple[str, ...]] = ()
    headline: ClassVar[str] = "kl"
    amount: ClassVar[str] = ""

    def __init__(
        self, elastic: ElasticModel, cache: Path | None = None, given: Mapping[str, Any] | None = None
    ):
        self.elastic, self.cache, self.given = elastic, cache, given or {}

    def first(self, count: int) -> EvalTask:
        """Returns the same task on the first `count` of its data."""
        return type(self)(self.elastic, self.cache, {**self.given, self.amount: count})

    @property
    def lacking(self) -> str:
        """What there would have to be to measure anything, as a sentence; "" where nothing lacks."""
        return ""

    @property
    @abstractmethod
    def id(self) -> str:
        """Identity of the data and of what is measured on them, for the results store."""

    @property
    @abstractmethod
    def total(self) -> int:
        """How many of `unit` the data hold."""

    @property
    @abstractmethod
    def conditions(self) -> dict[str, Any]:
        """What belongs beside the numbers, as JSON."""

    def describe(self) -> str:
        """Returns the same for people."""
        name, count = self.conditions["data"], f"{self.total:,}"
        return name if count in name else f"{name}, {count} {self.unit}"

    @abstractmethod
    def payloads(self, view: nn.Module, make_cache: MakeCache | None, gate: Gate) -> Iterator[Mapping]:
        """Yields what is known after each step as JSON with `tokens`, how many things were measured; `gate`
        is held around every forward pass."""

    def divergences(self, model: nn.Module) -> Iterator[Tensor]:
        """Yields KL(full precision || model) of each thing, batch by batch, float64 and with its gradient.
        NotImplementedError of tasks that search nothing."""
        raise NotImplementedError(f"no plans are searched by {self.name}")

    @abstractmethod
    def metrics(self, payload: Mapping) -> tuple[Metric, ...]:
        """Returns the metrics that a payload says; of an empty one the same without values."""

    def estimates(
        self, view: nn.Module, plan: PrecisionPlan | None = None, gate: Gate = nullcontext
    ) -> Iterator[TaskEstimate]:
        """Yields an estimate after every step, all that is known so far; the last one covers the data.

        plan: the view's, whose KV cache is used; without one the cache is in full precision.
        gate: a fair lock of the caller's, held for one forward pass at a time; do not hold it around this."""
        quantized = plan is not None and plan.rounds_cache
        make_cache = (lambda: self.elastic.make_cache(plan)) if quantized else None
        found = Reports()

        @contextmanager
        def listening() -> Iterator[object]:
            with gate() as turn, found.listen():
                yield turn

        for payload in self.payloads(view, make_cache, listening):
            means = found.means()
            yield self.read({**payload, "reports": means} if means else payload)

    def read(self, payload: Mapping[str, Any]) -> TaskEstimate:
        """Returns the estimate that was stored as `payload`; ValueError for what is none."""
        self.result.from_dict(payload)
        done = payload["tokens"] + payload.get("skipped", 0)
        return TaskEstimate(self.metrics(payload) + reported(payload), done, self.total, payload)

    def key(self, plan: PrecisionPlan, dtype: torch.dtype | None = None) -> ResultKey:
        """Returns where measurements of a plan in a compute dtype (the model's own unless given) are kept."""
        filed, model = self.elastic.filed_under(plan)
        return ResultKey(filed, model, self.id, dtype_name(dtype or self.elastic.dtype))

    def table(self, results: Results, plans: Iterable[PrecisionPlan] = ()) -> pd.DataFrame:
        """Returns everything measured of this model on these data, oldest first: `Results.table`, before it
        the `name`, `bytes` and `bits_per_parameter` of those of `plans` that were measured."""
        sizes, models = self.elastic.sizes, {self.elastic.identity, self.elastic.base_identity}
        about = {
            key: (plan.name, sizes.deploy(plan), sizes.bits_per_parameter(plan))
            for key, plan in ((self.elastic.filed_under(plan)[0], plan) for plan in plans)
        }
        found = results.table(models, self.id)
        known = [about.get(key, ("", None, None)) for key in found["plan"]]
        columns = pd.DataFrame(known, columns=["name", "bytes", "bits_per_parameter"])
        return columns.astype({"bytes": "Int64"}).join(found)


def reported(payload: Mapping[str, Any]) -> tuple[Metric, ...]:
    """Returns what layers said of the passes that were measured, see quept.engines.reports."""
    return tuple(
        Metric(name, name.capitalize(), name.capitalize(), value, "lower")
        for name, value in payload.get("reports", {}).items()
    )
