"""Pictures to calibrate on: a built-in set's training pictures, or every picture in a folder. No labels are
read: calibration needs none."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from quept.data.images import (
    SUFFIXES,
    THREADS,
    ImageError,
    in_channels,
    read_picture,
    transform_of,
)
from quept.models import Vision

Progress = Callable[[str, float | None], None]
BUILT_IN = "fashion-mnist"


def pictures(source: str, vision: Vision, count: int, seed: int, report: Progress) -> Tensor:
    """(at most count, channels, height, width) float32: pictures of `source`, prepared as the model wants
    them, drawn without repetition in an order that follows from the seed. Those that cannot be read are
    passed over. ValueError for a source that is none."""
    if source == BUILT_IN:
        from quept.data.fashion_mnist import fashion_mnist

        arrays = fashion_mnist("train", progress=report)[0]
        everything: list = list(range(len(arrays)))

        def read(which: int) -> Image.Image:
            return in_channels(Image.fromarray(arrays[which]), vision.channels)
    else:
        everything = _files(source)

        def read(which: Path) -> Image.Image:
            return read_picture(which, vision.channels)

    random.Random(seed).shuffle(everything)
    transform, found = transform_of(vision), []
    with ThreadPoolExecutor(THREADS) as pool:
        while everything and len(found) < count:
            missing = count - len(found)
            chosen, everything = everything[:missing], everything[missing:]
            prepared = pool.map(lambda which: _prepared(read, transform, which), chosen)
            found += [pixels for pixels in prepared if pixels is not None]
    if not found:
        raise ValueError(f"none of the pictures in {source!r} can be read")
    return torch.stack(found)


def identity(source: str) -> list[str]:
    """What tells one source from another when a run is resumed: of a folder a hash of its files' names and
    sizes."""
    if source == BUILT_IN:
        return [source]
    folder = Path(source)
    listed = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in _files(source)]
    return [hashlib.sha256(json.dumps(listed).encode()).hexdigest()]


def _files(source: str) -> list[Path]:
    folder = Path(source)
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise ValueError(
            f"{source!r} is neither a folder with pictures ({', '.join(sorted(SUFFIXES))}) nor {BUILT_IN!r}"
        )
    return found


def _prepared(read: Callable, transform: Callable, which: object) -> Tensor | None:
    try:
        return transform(read(which))
    except ImageError:
        return None
