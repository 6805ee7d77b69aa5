"""What the plans of an opened model are measured on: passages of text, labelled pictures for a classifier of
them, or questions about pictures for a vision-language model. All are used alike, so the service does not ask
which it is.

id, count, unit    identity of the data for the results store, how many of what it holds, and what they are;
words              the data and the conditions, for people;
estimates          a plan measured, an estimate after every piece, all of it at the end;
read               an estimate as it was kept; figures, what the chart shows of one; perfect, full precision's
                   own figure, which one tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from quept.evaluate import (
    AccuracyEstimate,
    Estimate,
    ImageReference,
    Images,
    Questions,
    Reference,
    VqaEstimate,
    VqaReference,
    Windows,
    accuracy,
    cut,
    divergence,
    prepared,
    stored_images,
    stored_questions,
    vqa,
)
from quept.evaluate.forward import Gate, MakeCache
from quept.plan import FULL, PrecisionPlan
from quept.runtime import ElasticModel

SHARES = ("kl", "kl_se", "top1", "top1_low", "top1_high", "same_top", "same_top_low", "same_top_high")


@dataclass(frozen=True)
class Sample:
    """The text that language models are measured on: its first `tokens` tokens, in windows of `context`;
    `title` is shown."""

    text: str
    title: str
    tokens: int = 4096
    context: int = 512


class MeasuredOn(Protocol):
    """See the module's docstring."""

    unit: str

    @property
    def id(self) -> str: ...

    @property
    def count(self) -> int: ...

    @property
    def words(self) -> str: ...

    def estimates(self, plan: PrecisionPlan, view: nn.Module, gate: Gate) -> Iterator[Any]: ...

    def read(self, payload: Mapping) -> Any: ...

    def figures(self, estimate: Any) -> dict[str, float]: ...

    def perfect(self, estimate: Any) -> dict[str, float]: ...

    def between(self, one: Mapping, other: Mapping, t: float) -> dict[str, float]:
        """Quality at the share t of the way between two figures."""


class Passages:
    """The first tokens of a text, and full precision's answers to them."""

    unit = "tokens"

    def __init__(self, elastic: ElasticModel, sample: Sample, cache: Path):
        self._elastic, self.sample, self._cache = elastic, sample, cache

    @cached_property
    def windows(self) -> Windows:
        return cut(self.sample.text, self._elastic.tokenizer, self.sample.context, self.sample.tokens)

    @cached_property
    def reference(self) -> Reference:
        return self.reference_on(self.windows)

    def reference_on(self, windows: Windows) -> Reference:
        elastic = self._elastic
        return Reference.open(elastic.base_identity, windows, elastic.reference, self._cache / "reference")

    @property
    def id(self) -> str:
        return self.windows.id

    @property
    def count(self) -> int:
        return self.windows.scored

    @property
    def words(self) -> str:
        return f"{self.sample.title}, {self.sample.tokens:,} tokens, context {self.sample.context}"

    def estimates(self, plan: PrecisionPlan, view: nn.Module, gate: Gate) -> Iterator[Estimate]:
        cache = _cache_of(self._elastic, plan)
        return divergence(view, self.reference, self.windows, make_cache=cache, gate=gate)

    def read(self, payload: Mapping) -> Estimate:
        return Estimate.from_dict(payload)

    def figures(self, estimate: Estimate) -> dict[str, float]:
        return {k: getattr(estimate, k) for k in ("kl", "kl_se", "ppl", "ppl_se", "same_top")}

    def perfect(self, estimate: Estimate) -> dict[str, float]:
        return {"ppl": estimate.ppl_ref}

    def between(self, one: Mapping, other: Mapping, t: float) -> dict[str, float]:
        return {k: _between(one[k], other[k], t) for k in ("kl", "ppl")}


class Pictures:
    """The labelled pictures beside a classifier, and full precision's answers to them."""

    unit = "pictures"

    def __init__(self, elastic: ElasticModel, cache: Path):
        self._elastic, self._cache = elastic, cache

    @cached_property
    def images(self) -> Images:
        vision = self._elastic.vision
        return prepared(stored_images(vision.images, vision), vision)

    @cached_property
    def reference(self) -> ImageReference:
        elastic = self._elastic
        return ImageReference.open(
            elastic.base_identity, self.images, elastic.reference, self._cache / "reference"
        )

    @property
    def id(self) -> str:
        return self.images.id

    @property
    def count(self) -> int:
        return len(self.images)

    @property
    def words(self) -> str:
        return _counted(self.images.name, self.count, self.unit)

    def estimates(self, plan: PrecisionPlan, view: nn.Module, gate: Gate) -> Iterator[AccuracyEstimate]:
        return accuracy(view, self.images, self.reference, gate)

    def read(self, payload: Mapping) -> AccuracyEstimate:
        return AccuracyEstimate.from_dict(payload)

    def figures(self, estimate: AccuracyEstimate) -> dict[str, float]:
        return {k: getattr(estimate, k) for k in SHARES}

    def perfect(self, estimate: AccuracyEstimate) -> dict[str, float]:
        return {"top1": estimate.top1_ref}

    def between(self, one: Mapping, other: Mapping, t: float) -> dict[str, float]:
        return {"kl": _between(one["kl"], other["kl"], t)}


class Answers(Pictures):
    """The questions beside a vision-language model, and full precision's answers to them. Figures are those
    of a classifier."""

    unit = "questions"

    @cached_property
    def questions(self) -> Questions:
        return stored_questions(self._elastic.questions, self._elastic.processor)

    @cached_property
    def reference(self) -> VqaReference:
        elastic, cache = self._elastic, self._cache / "reference"
        return VqaReference.open(elastic.base_identity, self.questions, elastic.full_precision, cache)

    @property
    def id(self) -> str:
        return self.questions.id

    @property
    def count(self) -> int:
        return len(self.questions)

    @property
    def words(self) -> str:
        return _counted(self.questions.name, self.count, self.unit)

    def estimates(self, plan: PrecisionPlan, view: nn.Module, gate: Gate) -> Iterator[VqaEstimate]:
        return vqa(view, self.questions, self.reference, _cache_of(self._elastic, plan), gate)

    def read(self, payload: Mapping) -> VqaEstimate:
        return VqaEstimate.from_dict(payload)


def _cache_of(elastic: ElasticModel, plan: PrecisionPlan) -> MakeCache | None:
    return None if plan.kv == FULL else lambda: elastic.make_cache(plan)


def _counted(name: str, count: int, unit: str) -> str:
    return name if f"{count:,}" in name else f"{name}, {count:,} {unit}"


def _between(one: float, other: float, t: float) -> float:
    """On a log scale, where a measured zero stands at 1e-12."""
    return math.exp((1 - t) * math.log(max(one, 1e-12)) + t * math.log(max(other, 1e-12)))
