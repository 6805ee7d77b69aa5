"""Taking turns: one model, many visitors.

Gate       a fair lock: taken for one forward step at a time and handed over in order of arrival, so a long
           answer never starves a slider.
Admission  how many long jobs (chats) may be under way at once; the others wait in line and know their place
in it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """First come, first served; a context manager. `waiting` tells how many stand before it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line: deque[threading.Event] = deque()
        self._held = False

    def __enter__(self) -> None:
        turn = threading.Event()
        with self._lock:
            if not self._held:
                self._held = True
                return
            self._line.append(turn)
        turn.wait()

    def __exit__(self, *_) -> None:
        with self._lock:
            if self._line:
                self._line.popleft().set()  # stays held: it now belongs to the next in line
            else:
                self._held = False

    @property
    def waiting(self) -> int:
        return len(self._line)


class Place:
    """A place in the line of an Admission, left when the `enter` block ends."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def wait(self, poll: float = 0.25) -> Iterator[int]:
        """Yield the position in line (1 = next) every `poll` seconds until admitted; yields nothing if there
        is room at once."""
        changed = self._admission._changed
        while True:
            with changed:
                position = self._admission._position(self)
                if position <= 0:
                    return
            yield position
            with changed:
                if self._admission._position(self) > 0:
                    changed.wait(poll)


class Admission:
    """At most `slots` jobs at once, in order of arrival."""

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"an admission needs at least one slot; got {slots}")
        self._slots = slots
        self._line: list[Place] = []
        self._changed = threading.Condition()

    def _position(self, place: Place) -> int:
        return self._line.index(place) - self._slots + 1

    @contextmanager
    def enter(self) -> Iterator[Place]:
        place = Place(self)
        with self._changed:
            self._line.append(place)
        try:
            yield place
        finally:
            with self._changed:
                self._line.remove(place)
                self._changed.notify_all()
