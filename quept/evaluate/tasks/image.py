"""Pictures: how well a classifier at some precision still classifies, batch by batch, next to what full
precision answers.

With p full precision's distribution over the classes and q the model's, per picture:

    right = the model's most likely class is the label      top1: its share, with Wilson's 95 % interval
    same  = both models' most likely classes are equal      same_top: its share, likewise; a flip where not
    kl    = sum_c p_c (log p_c - log q_c)                   in nats; its mean and standard error

A model with one class answers yes (0, its class) or no (1). Pictures that nobody has labelled (-1) count as
what full precision says they are, and there only agreement is a metric.

Full precision's logits are computed once for a model and a set of pictures, and kept in one small file a
batch: logits (k, classes) float32 and the numbers (k,) of the pictures that could be read. They share the
folder, and its limit, with the references of language models.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quept.data.images import Batch, Images, image_folder, stored_images
from quept.data.photographs import crop_set
from quept.evaluate.forward import Gate, MakeCache, device_of
from quept.evaluate.reference import BatchReference, open_reference
from quept.models.vision import class_logits

from .agreement import Agreement, accuracy_metrics, batches, compared, finite
from .base import EvalTask, Metric

if TYPE_CHECKING:
    from quept.runtime import ElasticModel

CROPS = 200
CHANGED = 48  # changed answers that an estimate lists


@dataclass(frozen=True)
class ClassChange:
    """Of the pictures of one class: how many, how many full precision has right, how many the model, and of
    how many the two say different things."""

    images: int
    right_ref: int
    right: int
    flips: int


@dataclass(frozen=True, kw_only=True)
class AccuracyEstimate(Agreement):
    """What `images` pictures say, in finite numbers. classes: by the number of the label, those that
    occurred; labelled: whether people said what is on the pictures. changed: the first CHANGED pictures to
    which the two say different things, as (number in the set, full precision's class, the model's)."""

    images: int
    labelled: bool = True
    classes: Mapping[int, ClassChange] = field(default_factory=dict)
    changed: tuple[tuple[int, int, int], ...] = ()

    def to_dict(self) -> dict:
        """Returns it as JSON; `tokens`, by which the results store compares two measurements, is the
        pictures' number."""
        classes = {str(label): asdict(change) for label, change in self.classes.items()}
        return asdict(self) | {"classes": classes, "tokens": self.images}


def image_reference(elastic: ElasticModel, images: Images, cache: Path | None = None) -> BatchReference:
    """Returns full precision's logits on a set of pictures; cache: see `open_reference`."""

    def compute(batch: Batch) -> dict[str, Tensor]:
        return finite({"logits": elastic.reference(batch.pixels).float().cpu().contiguous()})

    return open_reference(elastic, images, cache, compute)


def accuracy(
    model: nn.Module, images: Images, reference: BatchReference, gate: Gate = nullcontext
) -> Iterator[AccuracyEstimate]:
    """Yields an estimate after every batch, over all pictures so far; the last one covers them all.

    Each batch is read and prepared, then goes through the model, each with `gate()` held (a fair lock of the
    caller's; do not hold it around this generator yourself), after one more turn where the reference does not
    have it yet. Errors are those of `batches`."""
    start = time.perf_counter()
    seen: list[Tensor] = []
    labelled = bool((images.labels >= 0).all())

    answers = torch.inference_mode()(partial(_logits, model))
    for batch, expected, found, skipped in batches("picture", images, reference, model, answers, gate):
        seen.append(_scores(found["logits"], expected["logits"].double(), batch))
        yield _summary(torch.cat(seen, 1), skipped, time.perf_counter() - start, labelled)


class ImageTask(EvalTask):
    """data: a folder of pictures for each class, with labels, a file of their classes, or without; images:
    how many. Without data those that lie beside the model's weights, all of them."""

    name, kind, models, unit = "image", "vision", "classifiers of pictures", "pictures"
    result = AccuracyEstimate
    options, amount = ("data", "labels", "images"), "images"

    @property
    def lacking(self) -> str:
        vision = self.elastic.vision
        ready = vision.images or self.given.get("data") or vision.of_photographs
        return "" if vision.labels and ready else "no labelled pictures lie beside this model"

    @cached_property
    def images(self) -> Images:
        elastic, (data, labels, images) = self.elastic, map(self.given.get, self.options)
        if data:
            return image_folder(Path(data), elastic.vision, labels, images)
        if labels:
            raise ValueError("--labels tells the classes of the pictures in --data: give that folder too")
        if elastic.vision.images:
            return stored_images(elastic.vision.images, elastic.vision, images)
        if elastic.vision.of_photographs:
            return crop_set(elastic.vision, images or CROPS)
        raise ValueError(
            f"{elastic.title} comes without pictures: give --data FOLDER, which holds a folder of "
            "pictures for each class"
        )

    @cached_property
    def reference(self) -> BatchReference:
        return image_reference(self.elastic, self.images, self.cache)

    @property
    def id(self) -> str:
        return self.images.id

    @property
    def total(self) -> int:
        return len(self.images)

    @property
    def conditions(self) -> dict[str, Any]:
        size = list(self.elastic.vision.data["input_size"])
        return {"data": self.images.name, "images": self.total, "input": size}

    def payloads(self, view: nn.Module, make_cache: MakeCache | None, gate: Gate) -> Iterator[Mapping]:
        for estimate in accuracy(view, self.images, self.reference, gate):
            yield estimate.to_dict()

    def divergences(self, model: nn.Module) -> Iterator[Tensor]:
        answers = partial(_logits, model)
        parts = batches("picture", self.images, self.reference, model, answers, nullcontext)
        for _, expected, found, _ in parts:
            yield _divergence(expected["logits"].double(), found["logits"])

    def metrics(self, payload: Mapping) -> tuple[Metric, ...]:
        labelled = payload.get("labelled", True) if payload else self._labelled
        return accuracy_metrics(payload)[not labelled :]  # without accuracy, which would be agreement again

    @property
    def _labelled(self) -> bool:
        vision = self.elastic and self.elastic.vision
        return not vision or bool(vision.images or self.given.get("data")) or not vision.of_photographs


def _logits(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return {"logits": model(batch.pixels.to(device_of(model), _dtype_of(model))).double().cpu()}


def _divergence(expected: Tensor, logits: Tensor) -> Tensor:
    """KL of every picture (k,) from logits (k, classes)."""
    log_p, log_q = class_logits(expected).log_softmax(-1), class_logits(logits).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _scores(logits: Tensor, expected: Tensor, batch: Batch) -> Tensor:
    """(5, k) float64: the picture's number, its label, full precision's class, the model's, kl."""
    kl = _divergence(expected, logits)
    expected, logits = class_logits(expected), class_logits(logits)
    theirs, ours = expected.argmax(-1), logits.argmax(-1)
    labels = torch.where(batch.labels < 0, theirs, batch.labels)
    return torch.stack([batch.rows.double(), labels, theirs, ours, kl])


def _summary(scores: Tensor, skipped: int, seconds: float, labelled: bool) -> AccuracyEstimate:
    rows, labels, theirs, ours = scores[:4].long()
    right_ref, right, same = theirs == labels, ours == labels, theirs == ours
    each = torch.ones_like(right)
    counts = [labels.bincount(what.double()).long() for what in (each, right_ref, right, ~same)]
    table = torch.stack(counts, 1)
    changed = torch.stack([rows, theirs, ours], 1)[~same][:CHANGED]
    return AccuracyEstimate(
        images=len(labels),
        labelled=labelled,
        skipped=skipped,
        seconds=seconds,
        classes={label: ClassChange(*row) for label, row in enumerate(table.tolist()) if row[0]},
        changed=tuple(map(tuple, changed.tolist())),
        **compared(right_ref, right, same, scores[4]),
    )
