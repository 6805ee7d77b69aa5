"""What one side of the chat answers at: a plan of ours, or a baseline of another tool. Both answer the same
questions, so the chat does not ask which it is.

`side_of(...)` turns a menu's value into one. A baseline's value is "baseline:" and its name; it has no plan,
and so no place on the equaliser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from quept.plan import PrecisionPlan
from quept.runtime import BASELINES, Baseline, ElasticModel
from quept.runtime.baselines import available, baseline_named

EQUALIZER = "equaliser"
PREFIX = "baseline:"


class Precision(Protocol):
    """`label` is shown. `steady`: text read in two parts gives the very logits of text read at once, so that
    keys and values may be kept between turns."""

    label: str

    @property
    def steady(self) -> bool: ...

    def deploy_bytes(self, elastic: ElasticModel) -> int: ...

    def key(self, elastic: ElasticModel) -> str:
        """Equal for sides that give the same logits."""

    def prepare(self, elastic: ElasticModel) -> Iterator[float]:
        """Slow work before `view` in small pieces; yields the share done."""

    def view(self, elastic: ElasticModel) -> PreTrainedModel: ...

    def make_cache(self, elastic: ElasticModel) -> Cache: ...


@dataclass(frozen=True)
class Side:
    """A plan to answer at, and what to call it."""

    plan: PrecisionPlan
    label: str
    steady = True

    def deploy_bytes(self, elastic: ElasticModel) -> int:
        return elastic.sizes.deploy(self.plan)

    def key(self, elastic: ElasticModel) -> str:
        return self.plan.key(elastic.layers)

    def prepare(self, elastic: ElasticModel) -> Iterator[float]:
        return iter(())  # a view is put together in one step

    def view(self, elastic: ElasticModel) -> PreTrainedModel:
        return elastic.view(self.plan)

    def make_cache(self, elastic: ElasticModel) -> Cache:
        return elastic.make_cache(self.plan)


@dataclass(frozen=True)
class BaselineSide:
    """Another tool's precision of the whole model. Its keys and values stay in the compute dtype."""

    baseline: Baseline

    @property
    def label(self) -> str:
        return self.baseline.title

    @property
    def steady(self) -> bool:
        return self.baseline.steady

    def deploy_bytes(self, elastic: ElasticModel) -> int:
        return elastic.baseline_bytes(self.baseline.name)

    def key(self, elastic: ElasticModel) -> str:
        return self.baseline.key

    def prepare(self, elastic: ElasticModel) -> Iterator[float]:
        return elastic.prepare_baseline(self.baseline.name)

    def view(self, elastic: ElasticModel) -> PreTrainedModel:
        return elastic.baseline(self.baseline.name)

    def make_cache(self, elastic: ElasticModel) -> Cache:
        return elastic.make_cache(PrecisionPlan.full())


def baseline_choices(elastic: ElasticModel) -> list[tuple[str, str]]:
    """Menu entries (label, value) of the baselines of this model that can run here."""
    possible = available()
    return [(b.title, PREFIX + b.name) for b in BASELINES.values()] if possible else []


def baseline_of(choice: str) -> Baseline | None:
    """The baseline that a menu value or a chart point means; None if it means something else. BaselineError
    for one that does not exist."""
    return baseline_named(choice.removeprefix(PREFIX)) if choice.startswith(PREFIX) else None


def side_of(
    plan_of: Callable[[str, str, Mapping[str, Any] | None], PrecisionPlan],
    model: str,
    choice: str,
    plan_json: Mapping[str, Any] | None,
) -> Side | BaselineSide:
    """The side behind a menu value; `plan_of(model, choice, plan_json)` knows the plans. ValueError in
    words."""
    baseline = baseline_of(choice)
    if baseline:
        return BaselineSide(baseline)
    plan = plan_of(model, choice, plan_json)
    name = plan.name or "own plan"
    return Side(plan, f"equaliser, {name}" if choice == EQUALIZER else name)
