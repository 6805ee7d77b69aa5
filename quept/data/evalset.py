"""What plans are measured on in batches: the contract of a set of things that have right answers.

A set has a `name` for people and an `id`, a hash of all that decides a number measured on it: content, right
answers, how it is prepared. `batch(number)` reads and prepares a batch; those prepared stay in memory, as
many as fit, since many plans are measured on one set. Windows of a text are at hand as they are, and have no
more of this than `id` and a length (see windows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor

KEPT_BYTES = 24_000_000  # small pictures; a few hundred of 224 pixels would be all of 64 MB
THREADS = 4  # that decode: PIL lets go of the interpreter while it does
_T = TypeVar("_T")
_U = TypeVar("_U")


class ImageError(ValueError):
    """Pictures that cannot be read or understood; the message says which and what to do."""


class EvalBatch(Protocol):
    """rows: the numbers in the set of what could be read, (k,) int64; skipped: how many could not."""

    @property
    def rows(self) -> Tensor: ...

    @property
    def skipped(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class EvalSet:
    """See the module; `batches` and `read` are what a new kind has to give. most: bytes of batches that are
    kept. Safe to share between threads."""

    name: str
    id: str
    most: int = KEPT_BYTES
    _kept: dict[int, EvalBatch] = field(default_factory=dict, init=False, repr=False)

    @property
    def batches(self) -> int:
        """How many there are."""
        raise NotImplementedError

    def read(self, number: int) -> EvalBatch:
        """Returns batch `number`, those of its things that can be read, made now."""
        raise NotImplementedError

    def batch(self, number: int) -> EvalBatch:
        """Returns batch `number`, from memory where it is kept."""
        if number in self._kept:
            return self._kept[number]
        batch = self.read(number)
        if batch.nbytes + sum(kept.nbytes for kept in list(self._kept.values())) <= self.most:
            self._kept[number] = batch
        return batch


def in_threads(prepare: Callable[[_T], _U], which: Iterable[_T]) -> list[_U | None]:
    """Returns each thing prepared, None where that raises ImageError: it cannot be read."""

    def one(thing: _T) -> _U | None:
        try:
            return prepare(thing)
        except ImageError:
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, which))
