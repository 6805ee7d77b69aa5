"""Crops of photographs to calibrate classifiers on: of the few that packages bring (`quept.zoo.photos`), or
of a folder's. No labels are read.

A sample shows a part of a photograph, a quarter of it or more, in any shape between 3:4 and 4:3, and every
second one mirrored: ten photographs give as many different inputs as a run reads, though not as many
different things.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from quept.models import LoadedModel
from quept.zoo import PHOTOS, photos

from .base import Data, Progress, Wanted
from .images import read_picture, transform_of
from .pictures import Pictures, files_in

BUILT_IN = "packages"
SMALLEST, SHAPES = 0.25, (3 / 4, 4 / 3)  # of a crop: its share of the area; its width over its height


@dataclass(frozen=True)
class Photographs(Pictures):
    """`count` crops of the photographs of packages ("packages") or of a folder. Both stages read the same."""

    noun = "crops of photographs"

    def identity(self) -> list[str]:
        if self.source == BUILT_IN:
            return [hashlib.sha256(" ".join(e.source.sha256 for e in PHOTOS.values()).encode()).hexdigest()]
        return super().identity()

    def read(self, loaded: LoadedModel, wanted: Wanted, report: Progress) -> Data:
        report("cropping photographs", None)
        paths = [path for _, path in photos(report)] if self.source == BUILT_IN else files_in(self.source)
        found = crops(paths, loaded, self.count + wanted.held_out, wanted.seed)
        training = {"x": found[wanted.held_out :]}
        return Data(training, training, {"x": found[: wanted.held_out]})


def crops(paths: list[Path], loaded: LoadedModel, count: int, seed: int) -> Tensor:
    """(count, channels, height, width): crops of these photographs by turns, as the model takes them."""
    draw, prepare = random.Random(seed), transform_of(loaded.vision)
    read = [read_picture(path, loaded.vision.channels) for path in paths]
    return torch.stack([prepare(_crop(read[i % len(read)], draw)) for i in range(count)])


def _crop(picture: Image.Image, draw: random.Random) -> Image.Image:
    width, height = picture.size
    area, shape = draw.uniform(SMALLEST, 1) * width * height, draw.uniform(*SHAPES)
    w = max(1, min(width, round(sqrt(area * shape))))
    h = max(1, min(height, round(sqrt(area / shape))))
    x, y = draw.randint(0, width - w), draw.randint(0, height - h)
    found = picture.crop((x, y, x + w, y + h))
    return found.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else found
