"""Buffers that weights are unpacked into while they are multiplied: lent and given back, so that a forward
pass over hundreds of layers touches the same memory again and again. Safe between threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

KEPT = 2  # buffers that wait for the next layer; more are made while more threads compute at once


class Scratch:
    """Buffers of one dtype on one device."""

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device = dtype, device
        self._free: list[Tensor] = []
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict) -> Scratch:
        return self  # a copied layer lends from the same ones

    @contextmanager
    def lease(self, rows: int, columns: int) -> Iterator[Tensor]:
        """Gives a matrix (rows, columns) with anything in it, until the end of the block."""
        count = rows * columns
        with self._lock:
            buffer = self._free.pop() if self._free else None
        if buffer is None or len(buffer) < count:
            buffer = torch.empty(count, dtype=self.dtype, device=self.device)
        try:
            yield buffer[:count].view(rows, columns)
        finally:
            with self._lock:
                self._free = sorted([*self._free, buffer], key=len)[-KEPT:]

    def clear(self) -> None:
        """Gives back the buffers that wait; the next layer makes another."""
        with self._lock:
            self._free = []

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers that wait."""
        with self._lock:
            return sum(buffer.nbytes for buffer in self._free)
