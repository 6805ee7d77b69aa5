"""How far two models agree on things that have right answers: pictures with labels, questions with answers.

`batches` runs a model over the data next to full precision's stored answers; `Agreement` is what every
estimate of an accuracy says; `accuracy_metrics` is the same as metrics. What quantization did to the accuracy
is far better known than the accuracy itself, since both models see the same things: `lost` ones became wrong
and `gained` ones right, and nothing else changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from quept.data.evalset import EvalBatch, EvalSet, ImageError
from quept.evaluate.forward import Gate, NonFiniteLogits, pausing
from quept.evaluate.intervals import mean_and_error, wilson
from quept.evaluate.reference import BatchReference
from quept.evaluate.results import read_as

from .base import Metric


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """top1, same_top: shares of right and of equal answers with Wilson's 95 % intervals; top1_ref: full
    precision's share; kl: the mean divergence in nats and its standard error; skipped: how many could not be
    read; seconds: wall time, waiting and reading included."""

    skipped: int
    top1: float
    top1_low: float
    top1_high: float
    top1_ref: float
    lost: int
    gained: int
    same_top: float
    same_top_low: float
    same_top_high: float
    kl: float
    kl_se: float
    seconds: float

    @classmethod
    def from_dict(cls, data: Mapping) -> Self:
        """Inverse of `to_dict`, see `read_as`."""
        return read_as(cls, data)


def batches(
    what: str,
    data: EvalSet,
    reference: BatchReference,
    model: nn.Module,
    answers: Callable[[EvalBatch], dict[str, Tensor]],
    gate: Gate,
) -> Iterator[tuple[EvalBatch, dict[str, Tensor], dict[str, Tensor], int]]:
    """Yields (batch, full precision's answers, the model's, how many were left out so far) for every batch of
    which anything can be read. what: one of the data, for people. The gate is held while a batch is prepared,
    and again while `answers` runs the model. ValueError for another reference's data, NonFiniteLogits when
    the model answers NaN or infinity, ImageError when nothing can be read."""
    if data.id != reference.data.id:
        raise ValueError("these data are not the reference's: open it with those you measure on")
    skipped = read = 0
    for number in range(data.batches):
        with gate():
            batch = data.batch(number)
        skipped += batch.skipped
        if not len(batch.rows):
            continue
        expected = reference.batch(number, batch, gate)
        with gate() as turn, pausing(model, turn):
            found = answers(batch)
        if not all(t.isfinite().all() for t in found.values() if t.is_floating_point()):
            raise NonFiniteLogits(
                f"the model's logits are not finite for {what} {batch.rows[0].item()} or one of the "
                f"{len(batch.rows)} from there: try more bits, or float32 instead of a half precision"
            )
        read += len(batch.rows)
        yield batch, expected, found, skipped
    if not read:
        raise ImageError(f"none of the {len(data)} {what}s of {data.name} can be read")


def finite(answers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Full precision's answers as they are; NonFiniteLogits where they are not finite."""
    if not all(t.isfinite().all() for t in answers.values() if t.is_floating_point()):
        raise NonFiniteLogits("full precision's logits are not finite: the model's weights are damaged")
    return answers


def compared(right_ref: Tensor, right: Tensor, same: Tensor, kl: Tensor) -> dict[str, float | int]:
    """The fields of an `Agreement` that n things decide. right_ref, right, same (n,) bool: whether full
    precision is right, whether the model is, whether they agree."""
    n, correct, agreed = len(right), right.sum().item(), same.sum().item()
    low, high = wilson(correct, n)
    same_low, same_high = wilson(agreed, n)
    mean_kl, kl_se = mean_and_error(kl)
    return {
        "top1": correct / n,
        "top1_low": low,
        "top1_high": high,
        "top1_ref": right_ref.double().mean().item(),
        "lost": (right_ref & ~right).sum().item(),
        "gained": (right & ~right_ref).sum().item(),
        "same_top": agreed / n,
        "same_top_low": same_low,
        "same_top_high": same_high,
        "kl": mean_kl,
        "kl_se": kl_se,
    }


def accuracy_metrics(payload: Mapping[str, Any], detail: str | None = None) -> tuple[Metric, ...]:
    """The metrics of an `Agreement` as JSON, of `{}` the same without values."""
    get = payload.get
    n, lost, gained, same, kl, error = map(get, ("tokens", "lost", "gained", "same_top", "kl", "kl_se"))
    known = bool(payload)
    return (
        Metric(
            "top1", "Accuracy", "Accuracy (top 1)", get("top1"), "higher", get("top1_low"), get("top1_high"),
            unit="share", full=get("top1_ref"), margin=2 * math.sqrt(lost + gained) / n if known else None,
            note=f"{lost:,} became wrong, {gained:,} right" if known else "", detail=detail,
        ),
        Metric(
            "kl", "Mean KL", "Mean KL divergence from full precision", kl, "lower",
            kl - error if known else None, kl + error if known else None, unit="nats", full=0.0,
        ),
        Metric(
            "same_top", "Same answer", "Same answer as full precision", same, "higher",
            get("same_top_low"), get("same_top_high"), unit="share", full=1.0,
            note=f"{round((1 - same) * n):,} of {n:,} changed" if known else "",
        ),
    )  # fmt: skip
