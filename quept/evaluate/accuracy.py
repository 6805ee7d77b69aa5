"""How well a classifier at some precision still classifies: labelled pictures through it, batch by batch,
next to what full precision answers.

    cache = cache_dir() / "reference"
    reference = ImageReference.open(elastic.base_identity, images, elastic.reference, cache)
    for estimate in accuracy(elastic.view(plan), images, reference):
        ...                                        # one AccuracyEstimate per batch, stop any time

With p full precision's distribution over the classes and q the model's, per picture:

    right = the model's most likely class is the label      top1: its share, with Wilson's 95 % interval
    same  = both models' most likely classes are equal      same_top: its share, likewise; a flip where not
    kl    = sum_c p_c (log p_c - log q_c)                   in nats; its mean and standard error

What quantization did to the accuracy is far better known than the accuracy itself, since both models see the
same pictures: `lost` pictures became wrong and `gained` ones right, and nothing else changed.

Full precision's logits are computed once for a model and a set of pictures, and kept in one small file a
batch: logits (k, classes) float32 and the numbers (k,) of the pictures that could be read. They share the
folder, and its limit, with the references of language models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from quept.data.images import Batch, ImageError, Images

from .forward import Gate, NonFiniteLogits, device_of
from .intervals import mean_and_error, wilson
from .reference import LIMIT, keep, kept_batch
from .results import read_as

CHANGED = 48  # changed answers that an estimate lists


@dataclass(frozen=True)
class ClassChange:
    """Of the pictures of one class: how many, how many full precision has right, how many the model, and of
    how many the two say different things."""

    images: int
    right_ref: int
    right: int
    flips: int


@dataclass(frozen=True)
class AccuracyEstimate:
    """What `images` pictures say, in finite numbers; `skipped` ones could not be read. classes: by the number
    of the label, those that occurred. changed: the first CHANGED pictures to which the two say different
    things, as (number in the set, full precision's class, the model's). `seconds` is wall time, waiting and
    reading included."""

    images: int
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
    classes: Mapping[int, ClassChange] = field(default_factory=dict)
    changed: tuple[tuple[int, int, int], ...] = ()

    def to_dict(self) -> dict:
        """As JSON; `tokens`, by which the results store compares two measurements, is the pictures'
        number."""
        return asdict(self) | {
            "classes": {str(label): asdict(change) for label, change in self.classes.items()},
            "tokens": self.images,
        }

    @classmethod
    def from_dict(cls, data: Mapping) -> AccuracyEstimate:
        """Inverse of `to_dict`, see `read_as`."""
        return read_as(cls, data)


@dataclass(frozen=True)
class ImageReference:
    """Full precision's logits on a set of pictures. Use `ImageReference.open`. Safe to share."""

    images: Images
    forward: Callable[[Tensor], Tensor]
    folder: Path
    limit: int = LIMIT

    @classmethod
    def open(
        cls,
        identity: str,
        images: Images,
        forward: Callable[[Tensor], Tensor],
        cache: Path,
        limit: int = LIMIT,
    ) -> ImageReference:
        """The reference of the model of this identity, kept under `cache` (normally `cache_dir() /
        "reference"`).
        `forward` takes prepared pictures (k, channels, height, width) and gives full precision's logits (k,
        classes); it is called only for batches that are not on disk."""
        return cls(images, forward, Path(cache) / f"{identity}-{images.id}", limit)

    def logits(self, number: int, batch: Batch, gate: Gate = nullcontext) -> Tensor:
        """(k, classes) float32 on the CPU for the pictures of batch `number`. Where they must be computed,
        `gate` is held."""
        path = self.folder / f"batch-{number:05d}.safetensors"
        if kept := kept_batch(path, batch.rows):
            return kept["logits"]
        with gate():
            logits = self.forward(batch.pixels).float().cpu()
        if not logits.isfinite().all():
            raise NonFiniteLogits("full precision's logits are not finite: the model's weights are damaged")
        keep(path, {"rows": batch.rows, "logits": logits.contiguous()}, self.limit)
        return logits


def accuracy(
    model: nn.Module, images: Images, reference: ImageReference, gate: Gate = nullcontext
) -> Iterator[AccuracyEstimate]:
    """One estimate after every batch, over all pictures so far; the last one covers them all.

    Each batch is read and prepared, then goes through the model with `gate()` held (a fair lock of the
    caller's; do not hold it around this generator yourself), after one more turn where the reference does not
    have it yet. Raises NonFiniteLogits when the model answers NaN or infinity, ImageError when no picture can
    be read."""
    if images.id != reference.images.id:
        raise ValueError("these pictures are not the reference's: open it with those you measure on")
    start = time.perf_counter()
    device, dtype = device_of(model), _dtype_of(model)
    seen: list[Tensor] = []
    skipped = 0
    for number in range(images.batches):
        batch = images.batch(number)
        skipped += batch.skipped
        if not len(batch):
            continue
        expected = reference.logits(number, batch, gate)
        with gate(), torch.inference_mode():
            logits = model(batch.pixels.to(device, dtype)).double().cpu()
        if not logits.isfinite().all():
            raise NonFiniteLogits(
                f"the model's logits are not finite for picture {batch.rows[0].item()} or one of the "
                f"{len(batch)} from there: try more bits, or float32 instead of a half precision"
            )
        seen.append(_scores(logits, expected.double(), batch))
        yield _summary(torch.cat(seen, 1), skipped, time.perf_counter() - start)
    if not seen:
        raise ImageError(f"none of the {len(images)} pictures of {images.name} can be read")


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _scores(logits: Tensor, expected: Tensor, batch: Batch) -> Tensor:
    """(5, k) float64: the picture's number, its label, full precision's class, the model's, kl."""
    log_p, log_q = expected.log_softmax(-1), logits.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    theirs, ours = expected.argmax(-1), logits.argmax(-1)
    return torch.stack([batch.rows.double(), batch.labels, theirs, ours, kl])


def compared(right_ref: Tensor, right: Tensor, same: Tensor, kl: Tensor) -> dict[str, float | int]:
    """What two models make of the same n things, in the fields that every estimate of accuracy has.
    right_ref, right, same (n,) bool: whether full precision is right, whether the model is, whether they
    agree."""
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


def _summary(scores: Tensor, skipped: int, seconds: float) -> AccuracyEstimate:
    rows, labels, theirs, ours = scores[:4].long()
    right_ref, right, same = theirs == labels, ours == labels, theirs == ours
    each = torch.ones_like(right)
    counts = [labels.bincount(what.double()).long() for what in (each, right_ref, right, ~same)]
    table = torch.stack(counts, 1)
    changed = torch.stack([rows, theirs, ours], 1)[~same][:CHANGED]
    return AccuracyEstimate(
        images=len(labels),
        skipped=skipped,
        seconds=seconds,
        classes={label: ClassChange(*row) for label, row in enumerate(table.tolist()) if row[0]},
        changed=tuple(map(tuple, changed.tolist())),
        **compared(right_ref, right, same, scores[4]),
    )
