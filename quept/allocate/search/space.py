"""The plans that a search chooses from: one option for each unit, within a budget and the constraints.

A candidate is an array `picks` (units): for each unit (a layer, layers tied together, or the embeddings,
see `constraints.units`) the place of its option in the row of all units' options. Arrays are small and
hashable by their bytes; `Space.plan` turns one into a plan and `Space.picks_of` a plan into one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quept.plan import ACTIVATION_BITS, EMBEDDING_BITS, FULL, WEIGHT_BITS, Bits, PrecisionPlan
from quept.runtime.model import ElasticModel
from quept.runtime.sizes import Sizes

from ..sensitivity.table import SensitivityTable
from ..solve.constraints import AllocationError, Constraints, Unit, megabytes, units
from ..solve.knapsack import knapsack
from .correction import design


@dataclass(frozen=True)
class Space:
    """The plans to choose from: one option for each unit, within the budget. Options of all units stand in
    one row, those of unit u from offsets[u] on; `picks` (units) are places in that row.

    bytes, costs (options). room: bytes for all units. place (units): the first block of each, -1 of the
    embeddings. factors: see `correction.design`."""

    units: tuple[Unit, ...]
    offsets: np.ndarray
    bytes: np.ndarray
    costs: np.ndarray
    place: np.ndarray
    blocks: int
    factors: np.ndarray
    room: int
    layers: tuple[str, ...]
    constraints: Constraints

    @classmethod
    def of(
        cls,
        elastic: ElasticModel,
        table: SensitivityTable,
        constraints: Constraints,
        budget: int,
        sizes: Sizes | None = None,
    ) -> Space:
        sizes = sizes or elastic.sizes
        chosen = tuple(unit for unit in units(table, sizes, constraints) if not unit.cache)
        blocks = {n: i for i, block in enumerate(elastic.layout.blocks) for n in block.layers.values()}
        roles = {n: role for block in elastic.layout.blocks for role, n in block.layers.items()}
        lengths = [len(unit.bits) for unit in chosen]
        return cls(
            chosen,
            np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64),
            np.array([size for unit in chosen for size in unit.bytes], np.int64),
            np.array([max(0.0, cost) for unit in chosen for cost in unit.costs]),
            np.array([min((blocks[name] for name in unit.layers), default=-1) for unit in chosen]),
            len(elastic.layout.blocks),
            design(chosen, roles, blocks, sizes.weights),
            budget - sizes.fixed,
            elastic.layers,
            constraints,
        )

    def fits(self, picks: np.ndarray) -> bool:
        return int(self.bytes[picks].sum()) <= self.room

    def plan(self, picks: np.ndarray, cached: PrecisionPlan | None = None) -> PrecisionPlan:
        """The commonest width as the default, and a rule for each layer that has another. cached: a plan
        whose KV cache this one has."""
        bits_of, embeddings = {}, FULL
        for unit, bits in zip(self.units, self.bits(picks), strict=True):
            embeddings = embeddings if unit.layers else bits
            for name in unit.layers:
                bits_of[name] = Bits(bits, self.constraints.inputs(bits))
        default = Counter(bits_of.values()).most_common(1)[0][0]
        rules = {name: bits_of[name] for name in self.layers if bits_of[name] != default}
        plan = PrecisionPlan.of(rules, default, embeddings=embeddings)
        return replace(plan, kv=cached.kv, kv_blocks=cached.kv_blocks) if cached else plan

    def bits(self, picks: np.ndarray) -> list[int]:
        """The width of each unit."""
        rows = zip(self.units, picks - self.offsets, strict=True)
        return [unit.bits[option] for unit, option in rows]

    def picks_of(self, plan: PrecisionPlan) -> np.ndarray:
        """AllocationError where the plan is not one of these."""
        resolved, picks = plan.resolve(self.layers), []
        for unit, offset in zip(self.units, self.offsets, strict=True):
            name = unit.layers[0] if unit.layers else "the embeddings"
            wanted = {resolved[layer] for layer in unit.layers}
            widths = {bits.weights for bits in wanted} or {plan.embeddings}
            if len(widths) > 1:
                raise AllocationError(f"{name} is tied to layers that have other widths in this plan")
            bits = widths.pop()
            if bits not in unit.bits:
                offered = ", ".join(map(str, unit.bits))
                raise AllocationError(f"{name} has {bits} bits in this plan; the constraints allow {offered}")
            if wanted and wanted != {Bits(bits, self.constraints.inputs(bits))}:
                inputs = self.constraints.inputs(bits)
                raise AllocationError(f"the inputs of {name} must have {inputs} bits under these constraints")
            picks.append(offset + unit.bits.index(bits))
        picks = np.array(picks)
        if not self.fits(picks):
            over = int(self.bytes[picks].sum()) - self.room
            raise AllocationError(
                f"the plan to start from is {over:,} bytes ({megabytes(over)}) over the budget"
            )
        return picks

    def uniform(self, weights: int, embeddings: int) -> np.ndarray:
        """Every unit at this width, or where that is not on offer at the next one below, or the lowest."""
        options = []
        for unit in self.units:
            wanted = weights if unit.layers else embeddings
            below = [i for i, bits in enumerate(unit.bits) if bits <= wanted]
            options.append(below[-1] if below else 0)
        return self.offsets + np.array(options)

    def uniform_plans(self) -> list[tuple[int, int, np.ndarray]]:
        """(weights, embeddings, picks): for each width of the embeddings the highest width of the layers that
        fits; those that the table likes best first."""
        bits = next((unit.bits for unit in self.units if not unit.layers), (FULL,))
        offered = [b for b in bits if b in EMBEDDING_BITS] or bits  # graded ones are no uniform plans
        widths = sorted({bits for unit in self.units if unit.layers for bits in unit.bits}, reverse=True)
        found: dict[bytes, tuple[int, int, np.ndarray]] = {}
        for embeddings in offered:
            fitting = ((b, self.uniform(b, embeddings)) for b in widths)
            for b, picks in fitting:
                if self.fits(picks):
                    found.setdefault(picks.tobytes(), (b, embeddings, picks))
                    break
        return sorted(found.values(), key=lambda row: (self.costs[row[2]].sum(), row[1]))

    def raised(self, weights: int, embeddings: int) -> list[np.ndarray]:
        """A uniform plan with its spare bytes spent on raising layers to the next width: the ones that the
        table chooses, the first ones, and the last ones."""
        higher = min(
            (b for unit in self.units if unit.layers for b in unit.bits if b > weights), default=FULL
        )
        low, high = self.uniform(weights, embeddings), self.uniform(higher, embeddings)
        by_table = self._solved(
            self.costs, [sorted({int(a), int(b)}) for a, b in zip(low, high, strict=True)]
        )
        found = [] if by_table is None else [by_table]
        order = np.argsort(self.place, kind="stable")
        for first in (order, order[::-1]):
            picks, left = low.copy(), self.room - int(self.bytes[low].sum())
            for u in first:
                more = int(self.bytes[high[u]] - self.bytes[low[u]])
                if more <= left:
                    picks[u], left = high[u], left - more
            found.append(picks)
        return found

    def allocate(self, costs: np.ndarray, kept: np.ndarray | None = None) -> np.ndarray | None:
        """The plan of the smallest summed cost (options), none of them infinite. kept (units): the option
        that a unit must have, or -1. None where nothing fits."""
        places = [
            [i for i in range(offset, offset + len(unit.bits)) if math.isfinite(costs[i])]
            for unit, offset in zip(self.units, self.offsets.tolist(), strict=True)
        ]
        if kept is not None:
            places = [row if pick < 0 else [int(pick)] for row, pick in zip(places, kept, strict=True)]
        return self._solved(costs, places)

    def shared(self, one: np.ndarray, other: np.ndarray) -> int:
        """How many blocks, from the first on, two plans run alike; 0 where their embeddings differ."""
        return max(0, min(self.place[one != other].tolist(), default=self.blocks))

    def _solved(self, costs: np.ndarray, places: Sequence[Sequence[int]]) -> np.ndarray | None:
        options = [[(int(self.bytes[i]), float(costs[i])) for i in row] for row in places]
        found = knapsack(options, self.room)
        if found is None:
            return None
        return np.array([row[i] for row, i in zip(places, found[0], strict=True)])


def stand_in(sizes: Sizes) -> SensitivityTable:
    """A table where none was measured: the cost of a layer goes with its number of weights, and a bit more
    takes three quarters of it away, as it does of the squared rounding error."""
    whole = sum(sizes.weights.values())
    return SensitivityTable(
        model="",
        fingerprint="",
        group=0,
        per="layer",
        data={},
        reference={},
        layers={n: {b: w / whole * 4.0**-b for b in WEIGHT_BITS[:-1]} for n, w in sizes.weights.items()},
        uniform={},
        embeddings={b: 4.0**-b for b in EMBEDDING_BITS[:-1]},
        activations={n: dict.fromkeys(ACTIVATION_BITS[:-1], 0.0) for n in sizes.weights},
    )
