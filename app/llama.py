"""llama.cpp beside our own runtime: exported GGUF files that answer and are timed in this process.

    room = LlamaRoom()
    room.caption(path)                               "runs as llama.cpp would: 86 MB file, 74 tokens/s"
    for piece in room.answer(path, messages): ...
    room.agreement(elastic, plan, path, ids, gate)   how it agrees with the plan's view

The file that was asked last stays open, with its few MB of keys and values; its weights are mapped from disk.
llama.cpp takes no turns at the gate: it answers one question at a time, and others wait here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from quept.export.gguf.agreement import agreement
from quept.export.gguf.llama_cpp import LlamaCpp, Speed, missing
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel

from .gate import Gate

POSITIONS = 8  # half a second each
KNOWN = 256  # files whose speed is remembered


class LlamaRoom:
    """See the module docstring. All raise LlamaError, a sentence, where llama.cpp is missing or a file does
    not load."""

    def __init__(self):
        self._lock = threading.Lock()
        self._path: tuple[str, int] | None = None
        self._llama: LlamaCpp | None = None
        self._speeds: dict[tuple[str, int], Speed] = {}

    @property
    def missing(self) -> str:
        """What has to be installed first, as a sentence; "" if nothing has."""
        return missing()

    def answer(
        self, path: str | Path, messages: Sequence[Mapping[str, str]], tokens: int = 256, **sampling: Any
    ) -> Iterator[str]:
        """Gives an answer piece by piece; closing it stops it. See `LlamaCpp.answer`."""
        with self._running(path) as llama:
            yield from llama.answer(messages, tokens, **sampling)

    def speed(self, path: str | Path) -> Speed:
        """Returns the measured speed of a file: measured once."""
        key = _key(path)
        if key not in self._speeds:
            with self._running(path) as llama:
                self._speeds[key] = llama.speed()
            while len(self._speeds) > KNOWN:
                self._speeds.pop(next(iter(self._speeds)))
        return self._speeds[key]

    def caption(self, path: str | Path) -> str:
        """Returns what to say of a file: its size, and how fast it writes here."""
        megabytes = os.path.getsize(path) / 1e6
        return f"runs as llama.cpp would: {megabytes:.0f} MB file, {self.speed(path).write:.0f} tokens/s"

    def agreement(
        self, elastic: ElasticModel, plan: PrecisionPlan, path: str | Path, ids: Tensor, gate: Gate
    ) -> str:
        """Returns in words how the file agrees with the view of its plan on a text (t,) of token ids; the
        gate is held while the view runs."""
        with self._running(path) as llama:
            found = agreement(elastic, plan, llama, ids, POSITIONS, gate=lambda: gate)
        return (
            f"It finds our view's likeliest token at {found.same_top:.0%} of {found.positions} positions, KL "
            f"{found.kl:.1g}; it rounds activations to 8 bits, which costs our view {found.kl_a8:.1g}."
        )

    def close(self) -> None:
        """Lets the open file go."""
        with self._lock:
            self._let_go()

    @contextmanager
    def _running(self, path: str | Path) -> Iterator[LlamaCpp]:
        with self._lock:
            if self._path != _key(path):
                self._let_go()
                self._llama, self._path = LlamaCpp(path), _key(path)
            yield self._llama

    def _let_go(self) -> None:
        if self._llama is not None:
            self._llama.close()
        self._llama = self._path = None


def _key(path: str | Path) -> tuple[str, int]:
    """A file as it is now: one that was written anew is another."""
    return str(path), os.stat(path).st_mtime_ns if os.path.exists(path) else 0
