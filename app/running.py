"""Each visitor's newest answer or measurement, so that it can be stopped."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from .gate import CLIENT

STOPS_KEPT = 1000


@dataclass
class Running:
    """Each visitor's newest answer: an event that asks it to stop. One that was asked for before a stop, and
    waited in the queue meanwhile, begins stopped."""

    _jobs: dict[str, threading.Event] = field(default_factory=dict)
    _stops: OrderedDict[str, float] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, visitor: str) -> threading.Event:
        """A new answer; the visitor's older one is asked to stop."""
        job = threading.Event()
        with self._lock:
            older = self._jobs.get(visitor)
            self._jobs[visitor] = job
            if CLIENT.get().asked < self._stops.get(visitor, 0.0):
                job.set()
        if older:
            older.set()
        return job

    def is_newest(self, visitor: str, job: threading.Event) -> bool:
        return self._jobs.get(visitor) is job

    def end(self, visitor: str, job: threading.Event) -> None:
        with self._lock:
            if self._jobs.get(visitor) is job:
                del self._jobs[visitor]

    def stop(self, visitor: str) -> None:
        """Ask the visitor's answer to stop, and those still in the queue; does nothing where there is
        none."""
        with self._lock:
            self._stops[visitor] = time.monotonic()
            self._stops.move_to_end(visitor)
            while len(self._stops) > STOPS_KEPT:
                self._stops.popitem(last=False)
            job = self._jobs.get(visitor)
        if job:
            job.set()
