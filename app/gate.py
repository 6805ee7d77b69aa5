"""Taking turns: one model, many visitors.

CLIENT     for whom the work under way is done; the queue says it, gate and admission read it
Gate       a fair lock, taken for one forward step at a time: next is who has had the least time at it
           (start-time fair queueing: first between machines, then between the pages of one machine), so that
           neither a long answer nor somebody's eighty jobs starve a slider
Admission  how many long jobs (chats) may be under way at once; the others wait in line and know their place
           in it
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

RETURN_S = 0.004
HALF_S = 10.0  # in which half of the time that one had for first answers is forgotten
FREE_S = 1.0  # of it that counts as none: who asks now and then is served in the order of asking
EARLY_S = 3.0  # more of it that one may have had than another and still come before what makes others better
KNOWN = 4096  # machines and pages whose time is remembered


@dataclass(frozen=True)
class Client:
    """address: of the visitor's machine. session: of the page. asked: when, by time.monotonic()."""

    address: str = ""
    session: str = ""
    asked: float = math.inf

    @property
    def page(self) -> str:
        return f"{self.address} {self.session}"


CLIENT: ContextVar[Client] = ContextVar("client", default=Client())  # noqa: B039 (frozen)


class Unwanted(Exception):
    """What somebody had asked for and does not want any more: it ends where it is."""


@dataclass(eq=False)
class Turn:
    """One who waits at the gate or is inside; what `with gate as turn` gives.

    first: what somebody waits to see. wanted: whether anybody still wants it. rests: stepped aside for a
    first one in the middle of its work."""

    gate: Gate = field(repr=False)
    client: Client
    first: bool = False
    wanted: Callable[[], bool] = lambda: True
    rests: bool = False
    ready: threading.Event = field(default_factory=threading.Event)
    awaits: bool = False  # it is next unless one who has just left comes back

    def pause(self) -> None:
        """Let those in who wait for something first; where work may rest, such as between two blocks of a
        forward pass. Raises Unwanted where nobody wants it any more."""
        if not self.first:
            self.gate._rest(self)
        self.check()

    def check(self) -> None:
        if not self.wanted():
            raise Unwanted


class Gate:
    """One at a time, the least served first and among equals the first come; a context manager. `waiting`
    tells how many stand before it.

    `gate.turn(first=True)` is the same for what a visitor waits to see first, such as the first estimate of a
    measurement. Those come before what makes others' numbers better, in the order in which they were asked
    for, but for one who had much of late: more than FREE_S of the gate's time for such, and it comes after
    who had less; EARLY_S more than another who waits, and it comes before nothing. `turn.pause()` lets them
    in at once. What is not `wanted` any more raises Unwanted as its turn comes, or pauses.

    Who has left and would still be next, as a chat is between two tokens, is awaited for `returns` seconds:
    without that a long step would come after every short one, however short."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, returns: float = RETURN_S) -> None:
        self._clock, self._returns = clock, returns
        self._lock = threading.Lock()
        self._line: list[Turn] = []  # in order of arrival
        self._inside: Turn | None = None
        self._began = 0.0
        self._arrival = threading.Event()
        self._used: dict[str, float] = {}  # seconds at the gate, by machine and by page
        self._level: defaultdict[str, float] = defaultdict(float)  # who was served last had so much
        self._early: dict[str, tuple[float, float]] = {}  # seconds of it for first answers, and when counted

    @contextmanager
    def turn(self, first: bool = False, wanted: Callable[[], bool] = lambda: True) -> Iterator[Turn]:
        turn = self._enter(Turn(self, CLIENT.get(), first, wanted))
        try:
            turn.check()
            yield turn
        finally:
            self.__exit__()

    def __enter__(self) -> Turn:
        return self._enter(Turn(self, CLIENT.get()))

    def _enter(self, turn: Turn) -> Turn:
        with self._lock:
            for key, among in _shares(turn.client):
                self._used[key] = max(self._used.get(key, 0.0), self._level[among])
            if self._inside is None:
                self._let_in(turn)
                return turn
            self._line.append(turn)
            self._arrival.set()
        self._until_in(turn)
        return turn

    def _until_in(self, turn: Turn) -> None:
        """Waits in line, and then for one who has just left and would still be next."""
        turn.ready.wait()
        while turn.awaits:
            self._arrival.wait(self._returns)
            with self._lock:
                turn.awaits = False
                turn.ready.clear()
                self._line.insert(0, turn)
                self._next()
            turn.ready.wait()

    def __exit__(self, *_) -> None:
        with self._lock:
            left = self._count()
            self._inside = None
            if self._line:
                self._arrival.clear()
                self._next(left)
            elif len(self._used) > KNOWN:  # nobody waits: all may begin as equals
                self._used.clear(), self._level.clear(), self._early.clear()

    def _rest(self, turn: Turn) -> None:
        with self._lock:
            if not any(other.first for other in self._line):
                return
            self._count()
            turn.rests = True
            turn.ready.clear()
            self._line.insert(0, turn)
            self._next()
        self._until_in(turn)

    def _count(self) -> Turn:
        """Who is inside, whose time so far is counted."""
        now = self._clock()
        for key, _among in _shares(self._inside.client):
            self._used[key] += now - self._began
            if self._inside.first:
                self._early[key] = self._of_late(key) + now - self._began, now
        self._began = now
        return self._inside

    def _of_late(self, key: str) -> float:
        """Seconds at the gate for first answers, half of them forgotten every HALF_S."""
        seconds, counted = self._early.get(key, (0.0, 0.0))
        return seconds * 0.5 ** ((self._clock() - counted) / HALF_S)

    def _next(self, left: Turn | None = None) -> None:
        """Lets the next in line in, who waits a moment for one who has just `left` and was served less."""
        ranks = self._ranks([*self._line, left] if left else self._line)
        turn = min(self._line, key=lambda turn: ranks[self._line.index(turn)])
        turn.awaits = left is not None and ranks[-1] < ranks[self._line.index(turn)]
        self._line.remove(turn)
        self._let_in(turn)
        turn.ready.set()

    def _ranks(self, line: list[Turn]) -> list[tuple]:
        """What each is let in by, the lowest first."""
        early = {key: self._of_late(key) for turn in line for key, _among in _shares(turn.client)}
        least: dict[str, float] = {}
        for turn in line:
            for key, among in _shares(turn.client):
                least[among] = min(early[key], least.get(among, math.inf))

        def rank(turn: Turn) -> tuple:
            shares = _shares(turn.client)
            if turn.first and all(early[key] <= least[among] + EARLY_S for key, among in shares):
                return 0, *(max(early[key], FREE_S) for key, _among in shares), turn.client.asked
            return 1 if turn.rests else 2, *(self._used[key] for key, _among in shares)

        return list(map(rank, line))

    def _let_in(self, turn: Turn) -> None:
        self._inside, self._began = turn, self._clock()
        if not turn.awaits:
            for key, among in _shares(turn.client):
                self._level[among] = self._used[key]

    @property
    def waiting(self) -> int:
        return len(self._line)


def _shares(client: Client) -> tuple[tuple[str, str], tuple[str, str]]:
    """Whose time is counted, and among whom it is shared out: machines among all, pages of one machine."""
    return (client.address, ""), (client.page, client.address)


class Place:
    """A place in the line of an Admission, left when the `enter` block ends."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.client = CLIENT.get()

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
    """At most `slots` jobs at once; next is who has the fewest inside, and among equals the first come."""

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"an admission needs at least one slot; got {slots}")
        self._slots = slots
        self._inside: list[Place] = []
        self._line: list[Place] = []
        self._changed = threading.Condition()

    def _position(self, place: Place) -> int:
        return 0 if place in self._inside else self._in_order().index(place) + 1

    def _in_order(self) -> list[Place]:
        """The line as it will be let in, if nobody leaves."""
        held = Counter(key for place in self._inside for key in (place.client.address, place.client.page))
        line, ordered = list(self._line), []
        while line:
            place = min(line, key=lambda p: (held[p.client.address], held[p.client.page]))
            line.remove(place)
            ordered.append(place)
            held.update((place.client.address, place.client.page))
        return ordered

    @contextmanager
    def enter(self) -> Iterator[Place]:
        place = Place(self)
        with self._changed:
            self._line.append(place)
            self._let_in()
        try:
            yield place
        finally:
            with self._changed:
                (self._inside if place in self._inside else self._line).remove(place)
                self._let_in()
                self._changed.notify_all()

    def _let_in(self) -> None:
        while self._line and len(self._inside) < self._slots:
            place = self._in_order()[0]
            self._line.remove(place)
            self._inside.append(place)
