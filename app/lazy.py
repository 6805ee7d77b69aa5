"""A mapping whose values are made when they are first asked for, each once, whoever asks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Lazy(Mapping[str, T]):
    """makers: what makes the value of each name; `len`, `in` and iteration over names make nothing. Safe
    between threads: a second one that asks waits for the first."""

    def __init__(self, makers: Mapping[str, Callable[[], T]]):
        self._makers = dict(makers)
        self._locks = {name: threading.Lock() for name in makers}
        self._made: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name not in self._made:
            with self._locks[name]:
                if name not in self._made:
                    self._made[name] = self._makers[name]()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    @property
    def made(self) -> dict[str, T]:
        """The values that there are so far, by name."""
        return {name: self._made[name] for name in self._makers if name in self._made}
