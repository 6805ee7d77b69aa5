"""Pictures made from the model alone, to calibrate convolutional classifiers without any data: ZeroQ (arXiv
2001.00281), towards classes as in DeepInversion (arXiv 1912.08795).

Training left in batch norm the mean and deviation that every channel had over its pictures (see
`quept.models.batchnorm`). Pictures that begin as noise are changed by Adam until their activations have them:

    L = sum over convolutions of mean_c (m_c - mean_c)^2 + (d_c - deviation_c)^2, over deviation^2
        + crossentropy(answer, a class drawn for each picture) + smooth * mean |difference of neighbors|

with m, d over the pictures of a batch and their pixels. Each step shows them moved by a few pixels and every
second time mirrored. What comes out looks like texture with a hint of the class, and goes through the layers
as photographs do.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from quept.models import LoadedModel

from .base import TRANSFORMS, Data, DataError, DataSource, Progress, Wanted, need
from .batches import BATCH

JITTER = 16  # pixels that a picture is moved by at most
LEAST = 1e-2  # of a deviation: channels that never move count no more than this


@dataclass(frozen=True)
class Distilled(DataSource):
    """`count` pictures, `batch` of them at a time in `steps` steps of Adam; rate: of the pixels as the model
    takes them, normalized. Both stages read the same ones."""

    count: int
    steps: int
    batch: int = 32
    rate: float = 0.1
    smooth: float = 0.2

    noun, models, static, together = "distilled pictures", ("vision",), True, BATCH
    option = ""
    transforms = tuple(kind for kind in TRANSFORMS if kind not in ("scaling", "norms", "rotation"))

    def __post_init__(self) -> None:
        for field in ("count", "steps", "batch"):
            need(getattr(self, field) >= 1, field, "must be 1 or more")

    def shared(self) -> Distilled:
        return self

    def identity(self) -> list[str]:
        return ["distilled/1"]

    def describe(self) -> str:
        return f"{self.count:,} pictures distilled from the statistics of batch norm"

    def read(self, loaded: LoadedModel, wanted: Wanted, report: Progress) -> Data:
        if not getattr(loaded.vision, "statistics", None):
            raise DataError(
                f"{loaded.title} has no batch norm that pictures could be distilled from: give a folder of "
                "pictures with --data"
            )
        total = self.count + wanted.held_out
        batches = -(-total // self.batch)
        made = []
        for number, pictures in enumerate(distilled(self, loaded, wanted.seed, batches)):
            report("distilling pictures", (number + 1) / batches)
            made.append(pictures)
        found = torch.cat(made)[:total]
        training = {"x": found[wanted.held_out :]}
        return Data(training, training, {"x": found[: wanted.held_out]})


def distilled(settings: Distilled, loaded: LoadedModel, seed: int, batches: int) -> Iterator[Tensor]:
    """Batches of pictures (batch, channels, height, width), each from a seed of its own."""
    statistics, size = loaded.vision.statistics, loaded.vision.data["input_size"]
    model = copy.deepcopy(loaded.model).float()
    given: dict[str, Tensor] = {}
    for name in statistics:
        model.get_submodule(name).register_forward_hook(_keeping(given, name))
    for number in range(batches):
        generator = torch.Generator().manual_seed(random.Random(f"{seed} {number}").getrandbits(63))
        pixels = nn.Parameter(torch.randn(settings.batch, *size, generator=generator))
        classes = torch.randint(len(loaded.vision.labels), (settings.batch,), generator=generator)
        optimizer = torch.optim.Adam([pixels], settings.rate, betas=(0.5, 0.9))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        for _ in range(settings.steps):
            dx, dy = (int(torch.randint(-JITTER, JITTER + 1, (), generator=generator)) for _ in range(2))
            x = pixels.roll((dx, dy), (2, 3))
            x = x.flip(3) if torch.rand((), generator=generator) < 0.5 else x
            loss = cross_entropy(model(x), classes)
            loss = loss + sum(_distance(given[name], *wanted) for name, wanted in statistics.items())
            loss = loss + settings.smooth * (_steps(pixels, 2) + _steps(pixels, 3))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        yield pixels.detach()


def _keeping(given: dict[str, Tensor], name: str):
    def keep(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        given[name] = out
        return out.clone()  # the activation behind it may change it where it is

    return keep


def _distance(given: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """How far the channels of (n, channels, height, width) are from their mean and deviation."""
    found, scale = torch.std_mean(given, (0, 2, 3)), deviation.clamp(min=LEAST)
    return (((found[1] - mean) / scale).square() + ((found[0] - deviation) / scale).square()).mean()


def _steps(x: Tensor, axis: int) -> Tensor:
    return x.diff(dim=axis).abs().mean()
