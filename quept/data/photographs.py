"""Crops of photographs: to calibrate classifiers on, of the few that packages bring (`quept.zoo.photos`) or
of a folder's, and to compare plans with full precision on (`crop_set`). No labels are read.

A few photographs show few things, and what is learned on them alone holds for nothing else. So a sample is a
part of one, from a twentieth of it to all, turned, mirrored and in other colors, and every second one has a
rectangle of another put over it: Asano and Saeed (arXiv 2112.00725) distilled a thousand classes out of one
picture in this way. What widths are compared on is seen by no stage, since on the same crops what was learned
would always win, and shows all there is, since two photographs can be alike by chance: by turns crops of
every fifth photograph, from which nothing is learned, and of one end of each of the others, a quarter of it.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from math import sqrt

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
)

from quept.models import LoadedModel, Vision
from quept.zoo import PHOTOS, photos

from .base import Data, Progress, Wanted, need
from .images import Images, read_picture, transform_of
from .pictures import Pictures, files_in

BUILT_IN = "packages"
SMALLEST, SHAPES = 0.05, (3 / 4, 4 / 3)  # of a crop: its share of the area; its width over its height
TURNED, COLORS = 30, (0.5, 0.5, 0.5, 0.15)  # degrees; of brightness, contrast, saturation and hue
KEPT_FROM, END = 5, 0.25  # photographs: of so many one is held out; the share of the others that is
COVERED = (0.3, 0.8)  # of the sides, by the rectangle of another


@dataclass(frozen=True)
class Photographs(Pictures):
    """`count` crops of the photographs of packages ("packages") or of a folder. pixels: of each side, for
    models that take any size; 0: as the model wants them. Both stages read the same. Of fewer than
    KEPT_FROM photographs none is held out as a whole."""

    pixels: int = 0

    noun = "crops of photographs"

    def __post_init__(self) -> None:
        need(self.count >= 1, "count", "must be 1 or more")
        need(self.pixels == 0 or self.pixels >= 32, "pixels", "must be 32 or more, or 0")

    def identity(self) -> list[str]:
        if self.source == BUILT_IN:
            return [hashlib.sha256(_hashes().encode()).hexdigest()]
        return super().identity()

    def read(self, loaded: LoadedModel, wanted: Wanted, report: Progress) -> Data:
        report("cropping photographs", None)
        paths = [path for _, path in photos(report)] if self.source == BUILT_IN else files_in(self.source)
        read = [read_picture(path, loaded.vision.channels) for path in paths]
        kept = read[::KEPT_FROM] if len(read) >= KEPT_FROM else []
        parts = [_ends(picture) for i, picture in enumerate(read) if i % KEPT_FROM or not kept]
        found = crops([learned for learned, _ in parts], loaded, self.count, wanted.seed)
        if self.pixels:
            found = interpolate(found, (self.pixels, self.pixels), mode="bilinear", antialias=True)
        return Data(
            {"x": found}, {"x": found}, {"x": _plain([*kept, *(end for _, end in parts)], loaded, wanted)}
        )


def crop_set(vision: Vision, count: int = 200) -> Images:
    """Plain crops of the photographs that packages bring, by turns, of a third of each or more, to measure
    agreement with full precision on: nobody says what is on them, and every label is -1."""
    found = photos()
    draw, read = random.Random(0), [read_picture(path, vision.channels) for _, path in found]
    boxes = [_box(read[i % len(read)], draw, least=1 / 3) for i in range(count)]
    content = " ".join([str(count), json.dumps(dict(vision.data), sort_keys=True, default=list), _hashes()])
    return Images(
        name=f"{count} crops of {len(found)} photographs",
        id=hashlib.sha256(content.encode()).hexdigest(),
        labels=torch.full((count,), -1),
        picture=lambda i: read[i % len(read)].crop(boxes[i]),  # kept, they would take 110 MB
        transform=transform_of(vision),
    )


def _ends(picture: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The part of a photograph that is learned from, and its right or lower end, which is not."""
    width, height = picture.size
    if width >= height:
        edge = round(width * (1 - END))
        return picture.crop((0, 0, edge, height)), picture.crop((edge, 0, width, height))
    edge = round(height * (1 - END))
    return picture.crop((0, 0, width, edge)), picture.crop((0, edge, width, height))


def _plain(read: list[Image.Image], loaded: LoadedModel, wanted: Wanted) -> Tensor:
    """What widths are compared on: crops as they are, at the model's own size, as pictures will come."""
    draw, prepare = random.Random(f"held out {wanted.seed}"), transform_of(loaded.vision)
    parts = (_crop(read[i % len(read)], draw, least=1 / 3) for i in range(wanted.held_out))
    return torch.stack([prepare(part) for part in parts])


def _hashes() -> str:
    return " ".join(entry.source.sha256 for entry in PHOTOS.values())


def crops(read: list[Image.Image], loaded: LoadedModel, count: int, seed: int) -> Tensor:
    """(count, channels, height, width): samples of these photographs by turns, as the model takes them."""
    draw, prepare = random.Random(seed), transform_of(loaded.vision)
    found = torch.stack([prepare(_altered(_crop(read[i % len(read)], draw), draw)) for i in range(count)])
    whole = found.clone()
    for sample in found[::2]:
        part = whole[draw.randrange(count)]
        (top, height), (left, width) = (_span(side, draw) for side in sample.shape[1:])
        rows, columns = slice(top, top + height), slice(left, left + width)
        sample[:, rows, columns] = part[:, rows, columns]
    return found


def _crop(picture: Image.Image, draw: random.Random, least: float = SMALLEST) -> Image.Image:
    return picture.crop(_box(picture, draw, least))


def _box(picture: Image.Image, draw: random.Random, least: float) -> tuple[int, int, int, int]:
    width, height = picture.size
    area, shape = draw.uniform(least, 1) * width * height, draw.uniform(*SHAPES)
    w = max(1, min(width, round(sqrt(area * shape))))
    h = max(1, min(height, round(sqrt(area / shape))))
    x, y = draw.randint(0, width - w), draw.randint(0, height - h)
    return x, y, x + w, y + h


def _altered(picture: Image.Image, draw: random.Random) -> Image.Image:
    """Turned, mirrored, and in other colors."""
    if draw.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(draw.uniform(-TURNED, TURNED), Image.Resampling.BILINEAR)
    factors = [draw.uniform(1 - strength, 1 + strength) for strength in COLORS[:3]]
    for change, factor in zip((adjust_brightness, adjust_contrast, adjust_saturation), factors, strict=True):
        picture = change(picture, factor)
    return adjust_hue(picture, draw.uniform(-COLORS[3], COLORS[3]))


def _span(side: int, draw: random.Random) -> tuple[int, int]:
    """(start, length) of a part of a side."""
    length = round(draw.uniform(*COVERED) * side)
    return draw.randint(0, side - length), length
