"""Labelled pictures: the data that accuracy is measured on, and how any picture becomes a model's input.

    images = image_folder("imagenet/val", elastic.vision)   # a folder of pictures a class, ImageNet's layout
    images = stored_images(elastic.vision.images, elastic.vision)   # those that lie beside a model's weights

Pictures are read and prepared batch by batch, with timm's own preprocessing for the model. Any kind of JPEG,
PNG, WebP, GIF, BMP, TIFF or PNM is taken: turned upright as its EXIF data say, where they can be read; the
first frame of an animation, transparent parts over white, 16-bit grey scaled to 8, other grey numbers from
their least to their greatest, everything then converted to the model's channels. A file that cannot be read
(truncated, another format, too large or too long a strip to be safe) is left out and counted. Vector graphics
and PostScript are never opened.

A set has an `id`, a sha256 over its pictures, their labels and the preprocessing. Of files it takes their
names and sizes, not their content, which for ImageNet are six gigabytes: a file that is changed must change
its name or size to be measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from PIL.ExifTags import Base
from safetensors import SafetensorError, safe_open
from torch import LongTensor, Tensor

from quept.files import read_text, write_tensors
from quept.models import Vision
from quept.models.strips import check_shape

from .evalset import EvalSet, ImageError, in_threads

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
FORMAT, VERSION = "quept-images", 1
BATCH = 50
TURNS = {  # EXIF orientation -> what sets the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Batch:
    """Prepared pictures (k, channels, height, width) float32, their labels (k,) and their numbers in the set
    (k,). skipped: how many could not be read."""

    pixels: Tensor
    labels: LongTensor
    rows: LongTensor
    skipped: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes


@dataclass(frozen=True, eq=False, kw_only=True)
class Images(EvalSet):
    """labels (n,) int64. picture: number -> the picture in the model's channels, ImageError where it cannot
    be read. transform: picture -> (channels, height, width)."""

    labels: LongTensor
    picture: Callable[[int], Image.Image]
    transform: Callable[[Image.Image], Tensor]
    batch_size: int = BATCH

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def batches(self) -> int:
        return -(-len(self) // self.batch_size)

    def read(self, number: int) -> Batch:
        rows = range(len(self))[number * self.batch_size : (number + 1) * self.batch_size]
        found = in_threads(lambda row: self.transform(self.picture(row)), rows)
        kept = [row for row, pixels in zip(rows, found, strict=True) if pixels is not None]
        pixels = [p for p in found if p is not None]
        index = torch.tensor(kept, dtype=torch.int64)
        stacked = torch.stack(pixels) if pixels else torch.empty(0)
        return Batch(stacked, self.labels[index], index, len(rows) - len(kept))


def read_picture(source: str | Path | IO[bytes], channels: int = 3, most: int | None = None) -> Image.Image:
    """A picture from a file, upright, in grey (1 channel) or RGB (3); ImageError for anything else.

    The file may be a stranger's: only the formats of pixels are opened, and none that unpacks to more pixels
    than PIL thinks safe (179 million), nor more than `most`."""
    try:
        with Image.open(source, formats=FORMATS) as file:
            pixels = file.width * file.height
            if most and pixels > most:
                raise ValueError(
                    f"it has {pixels / 1e6:,.0f} million pixels; at most {most / 1e6:,.0f} are taken"
                )
            check_shape(file.size)
            file.load()
            return in_channels(_upright(file), channels)
    except Exception as error:  # a damaged file makes PIL raise nearly anything
        name = source if isinstance(source, str | Path) else "the picture"
        raise ImageError(f"{name} cannot be read: {error or type(error).__name__}") from None


def in_channels(picture: Image.Image, channels: int) -> Image.Image:
    """Any mode of picture as 8-bit grey (1 channel) or RGB (3)."""
    if channels not in (1, 3):
        raise ImageError(f"pictures have 1 channel or 3, and this model asks for {channels}")
    mode = "L" if channels == 1 else "RGB"
    if picture.mode[0] in "IF":
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert(mode)


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF data say; as it is where those are damaged, which the pixels are not."""
    try:
        turn = TURNS.get(picture.getexif().get(Base.Orientation))
    except Exception:  # PIL raises nearly anything
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, where PIL would cut off what is above 255: 16 bits scaled to 8; 32-bit and
    floating-point numbers from the least to the greatest of them."""
    values = np.asarray(picture, np.float64)
    grey, clear = values / 256, values == picture.info.get("transparency")
    if picture.mode in ("I", "F") and picture.format not in ("PNG", "PPM"):  # those two hold 16 bits in an I
        known = values[np.isfinite(values)]
        least, span = (known.min(), np.ptp(known)) if known.size else (0.0, 0.0)
        grey = np.nan_to_num((values - least) * (255 / span if span else 0), posinf=255, neginf=0)
    return Image.fromarray(np.where(clear, 255, grey.clip(0, 255)).astype(np.uint8))


def transform_of(vision: Vision) -> Callable[[Image.Image], Tensor]:
    """timm's preprocessing for this model: resize, crop, normalise. ImageError for a strip (see
    `check_shape`)."""
    from timm.data import create_transform

    prepare = create_transform(**vision.data, is_training=False)
    shorter = max(vision.data["input_size"][1:]) / (vision.data.get("crop_pct") or 1)

    def transform(picture: Image.Image) -> Tensor:
        try:
            check_shape(picture.size, shorter)
        except ValueError as error:
            raise ImageError(str(error)) from None
        return prepare(picture)

    return transform


def image_folder(
    folder: str | Path, vision: Vision, labels: str | Path | None = None, count: int | None = None
) -> Images:
    """The pictures of a folder that holds a folder for each class, named as data sets or people call it or by
    its number; where no name fits and there are as many folders as classes, they are the classes in order.

    labels: a text file that tells the classes instead, a line for each picture or folder in `folder`: its
    path, then a tab, comma or space, then the class. count: only so many. The order is shuffled, always the
    same way, so that the first few are a fair sample. ImageError with a sentence for what does not fit."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"there is no folder {folder}")
    classes = _Classes(vision)
    found = _listed(folder, Path(labels), classes) if labels else _by_folder(folder, classes)
    if not found:
        raise ImageError(
            f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))}) in a folder for each class; "
            "give a file of labels if they lie otherwise"
        )
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:count].tolist()
    paths, numbers = zip(*(found[i] for i in order), strict=True)
    named = [(p.relative_to(folder).as_posix(), p.stat().st_size) for p in paths]
    return Images(
        name=folder.resolve().name,
        id=_id(vision, json.dumps([named, numbers]).encode()),
        labels=torch.tensor(numbers),
        picture=lambda i: read_picture(paths[i], vision.channels),
        transform=transform_of(vision),
    )


def save_images(path: str | Path, name: str, pixels: Tensor, labels: Tensor, count: int = 1000) -> None:
    """Keep the first `count` labelled pictures in one file: pixels (n, height, width) or (n, height, width,
    3) uint8. The file appears whole or not at all."""
    tensors = {"pixels": pixels[:count].contiguous(), "labels": labels[:count].to(torch.int64).contiguous()}
    write_tensors(path, tensors, {"format": FORMAT, "version": str(VERSION), "name": name})


def stored_images(path: str | Path, vision: Vision, count: int | None = None) -> Images:
    """What `save_images` wrote, in its order; ImageError for a file that is none or of other classes."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ImageError(f'{path} holds no pictures ("format" is not "{FORMAT}")')
            if metadata.get("version") != str(VERSION):
                raise ImageError(
                    f"{path} has version {metadata.get('version')}; this program reads {VERSION}"
                )
            pixels, labels = file.get_tensor("pixels"), file.get_tensor("labels")
    except (SafetensorError, OSError) as error:
        raise ImageError(f"{path} cannot be read: {error}") from None
    sound = pixels.dtype == torch.uint8 and pixels.ndim in (3, 4) and 0 not in pixels.shape
    sound = sound and (pixels.ndim == 3 or pixels.shape[3] == 3)
    if not sound or labels.dtype != torch.int64 or labels.shape != (len(pixels),):
        raise ImageError(f"{path} is damaged: its pictures and labels do not fit")
    pixels, labels = pixels[:count], labels[:count]
    if labels.min() < 0 or labels.max() >= len(vision.labels):
        raise ImageError(f"{path} has labels that are no class of this model")
    content = hashlib.sha256(pixels.numpy()).digest() + labels.numpy().tobytes()
    return Images(
        name=metadata.get("name", Path(path).stem),
        id=_id(vision, content),
        labels=labels,
        picture=lambda i: in_channels(Image.fromarray(pixels[i].numpy()), vision.channels),
        transform=transform_of(vision),
    )


def _id(vision: Vision, content: bytes) -> str:
    data = json.dumps(dict(vision.data), sort_keys=True, default=list)
    return hashlib.sha256(data.encode() + b"\n" + content).hexdigest()


class _Classes:
    """What people and data sets call the classes of a model -> their numbers."""

    def __init__(self, vision: Vision):
        self.count = len(vision.labels)
        if not self.count:
            raise ImageError("this model has no classification head: it gives features and no classes")
        self._numbers: dict[str, int | None] = {}
        short = [label.partition(",")[0] for label in vision.labels]  # "tench, Tinca tinca"
        for names in (short, vision.labels, map(str, range(self.count)), vision.names):  # the last one wins
            own: dict[str, int | None] = {}
            for number, name in enumerate(names):
                name = name.casefold()
                own[name] = None if name in own else number  # two cranes: neither is meant
            self._numbers |= own
        self.example = f"{vision.names[0]}, {vision.labels[0]!r} or 0"

    def number(self, name: str) -> int | None:
        return self._numbers.get(name.strip().casefold())


def _by_folder(folder: Path, classes: _Classes) -> list[tuple[Path, int]]:
    inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = {p.name: pictures for p in inside if (pictures := _pictures(p))}
    numbers: Mapping[str, int | None] = {name: classes.number(name) for name in found}
    if found and len(found) == classes.count and not any(n is not None for n in numbers.values()):
        numbers = {name: number for number, name in enumerate(found)}
    unknown = [name for name, number in numbers.items() if number is None]
    if unknown:
        raise ImageError(
            f"{folder} holds a folder {unknown[0]!r}, which is no class of this model: name the folders "
            f"after classes ({classes.example}), or give a file of labels"
        )
    return [(path, numbers[name]) for name, pictures in found.items() for path in pictures]


def _listed(folder: Path, file: Path, classes: _Classes) -> list[tuple[Path, int]]:
    lines = read_text(file, "the labels", ImageError).splitlines()
    found: dict[Path, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, label = _entry(line, classes)
        path = folder / name
        if label is None:
            raise ImageError(
                f"{file}, line {number}: {line.strip()!r:.100} is not a path and a class ({classes.example})"
            )
        if Path(name).is_absolute() or not path.exists():
            raise ImageError(f"{file}, line {number}: there is no {name!r} in {folder}")
        found |= dict.fromkeys(_pictures(path) if path.is_dir() else (path,), label)
    return sorted(found.items())


def _entry(line: str, classes: _Classes) -> tuple[str, int | None]:
    """(path, class): cut where what comes after is a class, since both may hold spaces and commas."""
    for mark in ("\t", ",", None):
        name, *rest = line.split(mark, 1)
        number = classes.number(rest[0]) if rest else None
        if number is not None:
            break
    return name.strip(), number


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
