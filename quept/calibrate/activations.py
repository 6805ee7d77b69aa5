"""Activation streams: what flows between the blocks, for all calibration sequences at once.

A stream is an ordinary CPU tensor (sequences, context, hidden) of float32, read and written by rows; of
pictures that lie as they are seen (sequences, height, width, hidden):

    with ActivationStore(folder, memory=4_000_000_000) as streams:
        x = streams.new("full precision", 128, 2048, 4096)
        x[4:8] = block(x[4:8])

Streams lie in memory as long as all of them together stay within `memory` bytes; one that does not
fit is mapped from a file in `folder` instead, for the operating system to page. The values are the same
either way. Files are deleted when the context is left, after an error too, and what a killed process left
behind when the next one comes.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import torch
from torch import Tensor

from .errors import CalibrationError

SUFFIX = ".activations"


class ActivationStore:
    """folder: where files go, made when first needed; memory: bytes that all streams together may hold in
    memory."""

    def __init__(self, folder: str | Path, memory: int):
        self._folder, self._left = Path(folder), memory

    def __enter__(self) -> ActivationStore:
        self._delete()
        return self

    def __exit__(self, *_) -> None:
        self._delete()

    def new(self, name: str, *shape: int) -> Tensor:
        """A stream of zeros of this shape, sequences first, float32. CalibrationError where the disk has no
        room for it."""
        size = math.prod(shape) * torch.float32.itemsize
        if size <= self._left:
            self._left -= size
            return torch.zeros(shape)
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if size > free:  # or else the process would end without a word when a page finds no room
            raise CalibrationError(
                f"{size / 1e9:.1f} GB of activations fit neither into memory nor onto the disk of "
                f"{self._folder} ({free / 1e9:.1f} GB free): calibrate on fewer or shorter sequences, allow "
                "more memory, or give a folder on a larger disk"
            )
        path = self._folder / f"{name.replace(' ', '-')}{SUFFIX}"
        path.unlink(missing_ok=True)
        return torch.from_file(str(path), shared=True, size=size // 4, dtype=torch.float32).view(shape)

    def release(self, stream: Tensor) -> None:
        """The stream is not needed any more."""
        if stream.untyped_storage().filename is None:
            self._left += stream.nbytes

    def _delete(self) -> None:
        for path in self._folder.glob(f"*{SUFFIX}"):
            path.unlink(missing_ok=True)
