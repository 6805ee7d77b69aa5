"""The multiple-choice knapsack: one option of each unit within one budget, at the least cost, to the byte.

The linear relaxation uses only options on the lower convex hull of each unit's (bytes, cost): begin with the
fewest bytes everywhere and take the hulls' steps in order of falling benefit per byte until one does not fit
(Sinha and Zoltners, Operations Research 27, 1979). That gives a plan, and a lower bound on the cost of every
plan. `knapsack` closes the gap that is left.

Bytes are whole numbers. Costs are floats: "the least" is meant up to 1e-12 of the sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

STATES = (128, 2_048, 16_384)  # that the sweeps of a knapsack may keep: the first, the second, the last
EXACT = 1 - 1e-12  # what could be better by less than this is as good


def knapsack(
    options: Sequence[Sequence[tuple[int, float]]], budget: int, states: Sequence[int] = STATES
) -> tuple[list[int], float] | None:
    """One option (bytes, cost) of each unit, as positions: the smallest summed cost within the budget; and
    how far it can be from the best (0: it is the best). None where nothing fits.

    The relaxation gives a plan and a bound. An option that would lift the bound to that plan's cost is out;
    the rest is a dynamic programme over undominated (bytes, cost), unit by unit, in which every state carries
    the relaxation's bound for what is left, and its rounding as a whole plan (Dyer, Riha and Walker, Journal
    of Computational and Applied Mathematics 58, 1995). A sweep keeps at most so many states, those of the
    lowest bounds, and the lowest that it let go is what the gap is measured from; `states` are the limits of
    one sweep after another, until one lets nothing go that matters. The work is thus at most units x limit x
    options (and the sorting of them), whatever the metrics; random and real ones end in the first sweep."""
    cheapest = [min(cost for _, cost in unit) for unit in options]
    excess = [[(b, c - low) for b, c in unit] for unit, low in zip(options, cheapest, strict=True)]
    alive = [undominated(unit) for unit in excess]
    room = budget - sum(unit[kept[0]][0] for unit, kept in zip(excess, alive, strict=True))
    if room < 0:
        return None
    hull = Hull.of(excess, alive)
    count = int(hull.fitting(room))
    best = [kept[0] for kept in alive]
    for u, i in hull.steps(count):
        best[u] = i
    cost, relaxed, price = _total(excess, best), float(hull.bound(room, count)), float(hull.rate[count])
    anchor = [unit[i] for unit, i in zip(excess, best, strict=True)]
    low = relaxed
    for limit in states:
        target = cost * EXACT
        if low >= target:
            return best, 0.0
        alive = [
            [i for i in kept if relaxed + (unit[i][1] - c) + price * (unit[i][0] - b) < target]
            for unit, kept, (b, c) in zip(excess, alive, anchor, strict=True)
        ]
        found, let_go = _sweep(excess, alive, budget, target, limit)
        if found is not None:
            best, cost = found, _total(excess, found)
        low = max(low, min(cost, let_go))
    return best, 0.0 if low >= cost * EXACT else cost - low


def _sweep(
    options: Sequence[Sequence[tuple[int, float]]],
    alive: Sequence[Sequence[int]],
    budget: int,
    target: float,
    limit: int,
) -> tuple[list[int] | None, float]:
    """The best plan of the options alive that costs less than `target`, or None; and the lowest bound among
    states that were let go for want of room (infinite where none was).

    Units that have one option left are settled at once. Of the others, those which can move the most bytes
    come first, while states are few; the small ones then fill the gaps."""
    least = [options[u][kept[0]] for u, kept in enumerate(alive)]
    most = [options[u][kept[-1]] for u, kept in enumerate(alive)]
    order = [u for u, kept in enumerate(alive) if len(kept) > 1]
    order.sort(key=lambda u: most[u][0] - least[u][0], reverse=True)
    settled = [least[u] for u, kept in enumerate(alive) if len(kept) == 1]
    size = np.array([sum(b for b, _ in settled)], np.int64)
    paid = np.array([math.fsum(c for _, c in settled)])
    room_for = [budget - sum(least[u][0] for u in order[d:]) for d in range(1, len(order) + 1)]
    floor = [math.fsum(most[u][1] for u in order[d:]) for d in range(1, len(order) + 1)]
    hull = Hull.of([options[u] for u in order], [alive[u] for u in order])
    trail: list[tuple[np.ndarray, np.ndarray]] = []  # of each state kept: its option, the state it came from
    best, let_go = None, math.inf
    for depth, u in enumerate(order):
        hull = hull.without(depth)
        offered = np.array([options[u][i][0] for i in alive[u]], np.int64)
        asked = np.array([options[u][i][1] for i in alive[u]])
        width = len(size)
        size, paid = (offered[:, None] + size).ravel(), (asked[:, None] + paid).ravel()
        state = np.flatnonzero(size <= room_for[depth])
        room, paid_least = room_for[depth] - size[state], paid[state] + floor[depth]
        count = hull.fitting(room)
        rounded = paid_least + hull.left[count]
        i = int(rounded.argmin())
        if rounded[i] < target:
            target = float(rounded[i]) * EXACT
            best = depth, *divmod(int(state[i]), width), hull, int(count[i])
        bound = paid_least + hull.bound(room, count)
        promising = bound < target
        state, bound = state[promising], bound[promising]
        kept = _pareto(size[state], paid[state])
        if len(kept) > limit:
            by_bound = kept[np.argpartition(bound[kept], limit)]
            let_go = min(let_go, float(bound[by_bound[limit:]].min()))
            kept = np.sort(by_bound[:limit])
        state = state[kept]
        size, paid = size[state], paid[state]
        trail.append(np.divmod(state, width))
        if not len(state):
            break
    if best is None:
        return None, let_go
    depth, option, came, hull, count = best
    picked = [kept[0] for kept in alive]
    for position, i in hull.steps(count):
        picked[order[position]] = i
    while True:
        picked[order[depth]] = alive[order[depth]][option]
        if depth == 0:
            return picked, let_go
        depth -= 1
        option, came = (int(column[came]) for column in trail[depth])


def _total(options: Sequence[Sequence[tuple[int, float]]], picked: Sequence[int]) -> float:
    return math.fsum(unit[i][1] for unit, i in zip(options, picked, strict=True))


def undominated(options: Sequence[tuple[int, float]]) -> list[int]:
    """Positions of the options that no other beats in bytes and cost, ascending in bytes (so falling in
    cost)."""
    kept: list[int] = []
    for i in sorted(range(len(options)), key=lambda i: options[i]):
        if not kept or options[i][1] < options[kept[-1]][1]:
            kept.append(i)
    return kept


def _pareto(size: np.ndarray, paid: np.ndarray) -> np.ndarray:
    """The same of many states (n): their positions, ascending in size."""
    order = np.lexsort((paid, size))
    paid = paid[order]
    better = np.ones(len(order), bool)
    better[1:] = paid[1:] < np.minimum.accumulate(paid)[:-1]
    return order[better]


@dataclass(frozen=True)
class Hull:
    """The n steps of all units' lower convex hulls in order of falling benefit per byte. unit, option (n):
    where each leads. size, saved (n): its bytes, and the cost that it saves. reach (n + 1): bytes after the
    first k steps, counted from the fewest; left (n + 1): cost that the others would still save; rate (n + 1):
    cost saved by a byte of step k, and 0 at the end.

    `left` is summed from the far end, so over ever larger numbers: small costs lose no digits to large ones.
    """

    unit: np.ndarray
    option: np.ndarray
    size: np.ndarray
    saved: np.ndarray
    reach: np.ndarray
    left: np.ndarray
    rate: np.ndarray

    @classmethod
    def of(cls, options: Sequence[Sequence[tuple[int, float]]], alive: Sequence[Sequence[int]]) -> Hull:
        """Of every unit its options alive: undominated, ascending in bytes."""
        steps = []
        for u, (unit, kept) in enumerate(zip(options, alive, strict=True)):
            corners, rates = kept[:1], []
            for i in kept[1:]:
                while True:
                    (size, cost), (more, less) = unit[corners[-1]], unit[i]
                    rate = (cost - less) / (more - size)
                    if not rates or rate < rates[-1]:
                        break
                    corners.pop()  # it lies on or above the line from the corner before it to this option
                    rates.pop()
                corners.append(i)
                rates.append(rate)
            for rate, i, j in zip(rates, corners, corners[1:], strict=False):
                steps.append((-rate, u, j, unit[j][0] - unit[i][0], unit[i][1] - unit[j][1]))
        steps.sort()
        _, unit, option, size, saved = zip(*steps, strict=True) if steps else [()] * 5
        return cls._summed(
            np.array(unit, np.int64),
            np.array(option, np.int64),
            np.array(size, np.int64),
            np.array(saved, float),
        )

    @classmethod
    def _summed(cls, unit: np.ndarray, option: np.ndarray, size: np.ndarray, saved: np.ndarray) -> Hull:
        reach = np.concatenate(([0], np.cumsum(size)))
        left = np.concatenate((np.cumsum(saved[::-1])[::-1], [0.0]))
        rate = np.concatenate((saved / size, [0.0]))
        return cls(unit, option, size, saved, reach, left, rate)

    def without(self, unit: int) -> Hull:
        """The steps of all other units."""
        other = self.unit != unit
        return self._summed(self.unit[other], self.option[other], self.size[other], self.saved[other])

    def fitting(self, room: np.ndarray) -> np.ndarray:
        """How many steps fit into so many bytes."""
        return np.searchsorted(self.reach, room, side="right") - 1

    def bound(self, room: np.ndarray, count: np.ndarray) -> np.ndarray:
        """The relaxation's cost still to be saved, where `count` steps fit and a part of the next."""
        then = np.minimum(count + 1, len(self.size))
        return self.left[then] + np.maximum(self.reach[then] - room, 0) * self.rate[count]

    def steps(self, count: int) -> Iterable[tuple[int, int]]:
        """(unit, option) of the first `count` steps."""
        return zip(self.unit[:count].tolist(), self.option[:count].tolist(), strict=True)
