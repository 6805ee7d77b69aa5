"""Pictures to calibrate classifiers on: a built-in set's training pictures, or every picture in a folder. No
labels are read: calibration needs none."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from quept.models import LoadedModel, Vision

from .base import TRANSFORMS, Data, DataError, FolderSource, Progress, Wanted
from .batches import BATCH
from .evalset import in_threads
from .images import SUFFIXES, in_channels, read_picture, transform_of

BUILT_IN = "fashion-mnist"


@dataclass(frozen=True)
class Pictures(FolderSource):
    """`count` pictures of "fashion-mnist" or a folder. Both stages read the same ones."""

    noun, models, static, together = "pictures", ("vision",), True, BATCH
    transforms = tuple(
        kind for kind in TRANSFORMS if kind != "scaling"
    )  # which is searched on windows of text

    def identity(self) -> list[str]:
        """Of a folder a hash of its files' names and sizes."""
        if self.source == BUILT_IN:
            return [self.source]
        folder = Path(self.source)
        listed = [
            (path.relative_to(folder).as_posix(), path.stat().st_size) for path in files_in(self.source)
        ]
        return [hashlib.sha256(json.dumps(listed).encode()).hexdigest()]

    def read(self, loaded: LoadedModel, wanted: Wanted, report: Progress) -> Data:
        report("reading the calibration pictures", None)
        held_out = wanted.held_out
        found = _drawn(self.source, loaded.vision, self.count + held_out, wanted.seed, report)
        if len(found) <= held_out:
            raise DataError(
                f"{len(found)} pictures can be read in {self.source}, too few to hold {held_out} out of "
                "them: give more"
            )
        training = {"x": found[held_out:]}
        return Data(training, training, {"x": found[:held_out]})


def _drawn(source: str, vision: Vision, count: int, seed: int, report: Progress) -> Tensor:
    """(at most count, channels, height, width) float32: pictures prepared as the model wants them, drawn
    without repetition in an order that follows from the seed. Those that cannot be read are passed over."""
    if source == BUILT_IN:
        from .fashion_mnist import fashion_mnist

        arrays = fashion_mnist("train", progress=report)[0]
        everything: list = list(range(len(arrays)))

        def read(which: int) -> Image.Image:
            return in_channels(Image.fromarray(arrays[which]), vision.channels)
    else:
        everything = files_in(source)

        def read(which: Path) -> Image.Image:
            return read_picture(which, vision.channels)

    random.Random(seed).shuffle(everything)
    transform, found = transform_of(vision), []
    while everything and len(found) < count:
        missing = count - len(found)
        chosen, everything = everything[:missing], everything[missing:]
        prepared = in_threads(lambda which: transform(read(which)), chosen)
        found += [pixels for pixels in prepared if pixels is not None]
    if not found:
        raise DataError(f"none of the pictures in {source!r} can be read")
    return torch.stack(found)


def files_in(source: str) -> list[Path]:
    folder = Path(source)
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise DataError(
            f"{source!r} is neither a folder with pictures ({', '.join(sorted(SUFFIXES))}) nor {BUILT_IN!r}"
        )
    return found
