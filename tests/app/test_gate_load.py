"""Twelve visitors beside a greedy one, in simulated time at the real gate: how long first estimates take.

A release makes its weights, then its first estimate, then window after window until the visitor's next one;
a window is thirty blocks and a head, between which it may rest. The seconds are SmolLM2-135M's on two cores.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from app.gate import CLIENT, Client, Gate, Turn, Unwanted

AROUND, WEIGHTS, ESTIMATE = 0.15, 0.15, 0.15  # of a release: outside of the gate, and two turns at it
BLOCK, HEAD, BLOCKS, WINDOWS = 0.03, 0.15, 30, 8
ALONE = AROUND + WEIGHTS + ESTIMATE
THINKING, ENDS = 8.0, 60.0


class World:
    """Simulated time: it goes on while somebody works at the gate, or up to the next who wakes where nobody
    does, and only when everybody else waits."""

    def __init__(self) -> None:
        self.now, self.gate = 0.0, _Gate(clock=lambda: self.now, returns=5.0)
        self.taken: list[float] = []
        self._asleep: list[tuple[float, int, int, threading.Event]] = []
        self._awake = {threading.get_ident()}
        self._lock, self._count = threading.Lock(), 0
        self.gate.awake = self._awake
        self.gate._line = _Line(self._awake)

    def spawn(self, work: Callable[[], None]) -> threading.Thread:
        started = threading.Event()

        def run() -> None:
            self._awake.add(threading.get_ident())
            started.set()
            work()
            self.falls_asleep()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        started.wait()
        return thread

    def sleep(self, seconds: float) -> None:
        event = threading.Event()
        with self._lock:
            self._count += 1
            due = self.now + seconds
            heapq.heappush(self._asleep, (due, self._count, threading.get_ident(), event))
        self.falls_asleep()
        event.wait()

    def falls_asleep(self) -> None:
        with self._lock:
            self._awake.discard(threading.get_ident())
            if not self._awake:
                self.gate._arrival.set()  # nobody comes back: who is awaited need not be
            if self.gate._inside is None and not self._awake and self._asleep:
                self._wake()

    def _wake(self) -> None:
        self.now, _, who, event = heapq.heappop(self._asleep)
        self._awake.add(who)
        event.set()

    def work(self, turn: Turn, seconds: float) -> None:
        end = self.now + seconds
        while True:
            while self._awake:
                time.sleep(0)
            with self._lock:
                if not self._asleep or self._asleep[0][0] > end:
                    break
                self._wake()
        self.now = end
        turn.pause()


class _Gate(Gate):
    """Tells who is inside, who counts as busy and not as awake."""

    awake: set[int]

    def _enter(self, turn: Turn) -> Turn:
        entered = super()._enter(turn)
        self.awake.discard(threading.get_ident())
        return entered

    def __exit__(self, *_) -> None:
        self.awake.add(threading.get_ident())
        super().__exit__()


class _Line(list):
    """The same of who joins the line."""

    def __init__(self, awake: set[int]) -> None:
        self.awake = awake

    def append(self, turn: Turn) -> None:
        super().append(turn)
        self.awake.discard(threading.get_ident())


def test_beside_a_greedy_page_first_estimates_come_within_three_times_of_alone():
    world, newest = World(), {}
    pages = {f"{i}": random.Random(100 + i) for i in range(12)}

    def thinks(page: str, share: float) -> None:
        world.sleep(share * THINKING)
        release(page)

    def release(page: str) -> None:
        asked, ticket = world.now, object()
        newest[page] = ticket
        CLIENT.set(Client("127.0.0.1", page, asked))

        def wanted() -> bool:
            return newest[page] is ticket and world.now < ENDS

        with suppress(Unwanted):
            for seconds in (WEIGHTS, ESTIMATE):
                with world.gate.turn(True, wanted) as turn:
                    world.work(turn, seconds)
            if page not in pages:
                return
            world.taken.append(world.now - asked + AROUND)
            world.spawn(lambda: thinks(page, pages[page].uniform(0.5, 1.5)))
            for _ in range(WINDOWS):
                with world.gate.turn(False, wanted) as turn:
                    for seconds in [BLOCK] * BLOCKS + [HEAD]:
                        world.work(turn, seconds)

    def grabs() -> None:
        world.sleep(1.0)
        while world.now < ENDS:
            release("greedy")

    begins = [lambda page=page, draw=draw: thinks(page, draw.random()) for page, draw in pages.items()]
    threads = [world.spawn(work) for work in [*begins, grabs]]
    world.falls_asleep()
    for thread in threads:
        thread.join(60)
    taken = sorted(world.taken)
    assert len(taken) > 50
    assert taken[-(len(taken) // 20) - 1] < 3 * ALONE
