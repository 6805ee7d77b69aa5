"""What an allocation may choose from: the widths of each unit, with their bytes and what they cost.

A *unit* is what gets one width: a layer, layers tied together, the embeddings, or the keys and values of a
block where the sizes count a context. `units(...)` turns a sensitivity table, the sizes and the constraints
into them; all that a person can ask for and cannot have is refused here, with a sentence.

    cost of a layer at b bits       S_weights[layer, b] + S_activations[layer, width of its inputs]
    cost of the embeddings at b     S_embeddings[b]
    cost of a block's cache at b    C[block, b]; of the whole cache as one unit where the table knows no more
    cost of 16 bits                 0, or the table's number where it was measured around another plan

Pins, floors and ceilings are given by layer name or glob pattern, and of several that fit the last one
counts, as in a plan; the key "embeddings" means the embeddings, which no pattern reaches, "kv" the KV cache,
and "kv:model.layers.0", with a block's name or a pattern, a part of it. A pin stands whatever `widths` says.
What holds for one of the layers tied together holds for all of them.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import TYPE_CHECKING, Literal

from quept.engines import GRADED_WIDTHS
from quept.plan import ACTIVATION_BITS, EMBEDDING_BITS, FULL, KV_BITS, QUANTIZED_BITS, WEIGHT_BITS

from ..sensitivity.table import FULL_PRECISION

if TYPE_CHECKING:
    from quept.models import ModelLayout
    from quept.runtime.sizes import Sizes

    from ..sensitivity.table import SensitivityTable

ANY_EMBEDDING = tuple(sorted((*EMBEDDING_BITS, *GRADED_WIDTHS)))
EMBEDDINGS = "embeddings"
CACHE, CACHE_OF = "kv", "kv:"  # the KV cache; with a block behind it, that block's
AS_WEIGHTS = "as weights"


class AllocationError(ValueError):
    """There is no such allocation; the message says what stands in the way."""


@dataclass(frozen=True)
class Constraints:
    """widths: what a layer may have; embeddings, cache: what they may have (graded widths where the table has
    them). pinned, floor, ceiling: `{layer
    name, pattern, "embeddings" or "kv": bits}`. ties: groups of layers that share one width (see `tied`).
    activations: the width of every layer's inputs, or "as weights" for the same as its weights but at least
    4."""

    widths: tuple[int, ...] = QUANTIZED_BITS
    embeddings: tuple[int | float, ...] = (*GRADED_WIDTHS, 4, 5, 6, 7, 8, FULL)
    cache: tuple[int, ...] = KV_BITS
    pinned: Mapping[str, int] = field(default_factory=dict)
    floor: Mapping[str, int] = field(default_factory=dict)
    ceiling: Mapping[str, int] = field(default_factory=dict)
    ties: tuple[tuple[str, ...], ...] = ()
    activations: int | Literal["as weights"] = FULL

    def __post_init__(self) -> None:
        offered = (("widths", WEIGHT_BITS), ("embeddings", ANY_EMBEDDING), ("cache", KV_BITS))
        for what, allowed in offered:
            chosen = getattr(self, what)
            if not chosen:
                raise AllocationError(f"{what} must name at least one of {_listed(allowed)} bits")
            for bits in chosen:
                _check(what, bits, allowed)
            object.__setattr__(self, what, tuple(sorted(set(chosen))))
        for what in ("pinned", "floor", "ceiling"):
            for key, bits in getattr(self, what).items():
                allowed = KV_BITS if of_cache(key) else ANY_EMBEDDING if key == EMBEDDINGS else WEIGHT_BITS
                _check(f"{what} {key!r}", bits, allowed)
        if self.activations != AS_WEIGHTS:
            _check("activations", self.activations, ACTIVATION_BITS)

    def inputs(self, weights: int) -> int:
        """Width of the inputs of a layer whose weights have this one."""
        if self.activations != AS_WEIGHTS:
            return self.activations
        return max(min(ACTIVATION_BITS), weights)


@dataclass(frozen=True)
class Unit:
    """What gets one width: `layers` together, the keys and values of the blocks `cache`, or the embeddings
    where there are neither. Its options, ascending: bits, and at each of them the bytes and the cost of all
    of it."""

    layers: tuple[str, ...]
    bits: tuple[int, ...]
    bytes: tuple[int, ...]
    costs: tuple[float, ...]
    cache: tuple[str, ...] = ()

    @property
    def options(self) -> list[tuple[int, float]]:
        return list(zip(self.bytes, self.costs, strict=True))


def tied(layout: ModelLayout, kind: str) -> tuple[tuple[str, ...], ...]:
    """Groups of layers for `Constraints.ties`. "qkv": in each block q = k = v and gate = up, the layers that
    engines fuse; "block": all layers of a block."""
    if kind == "qkv":
        return layout.same_input
    if kind != "block":
        raise AllocationError(f'layers are tied by "qkv" or by "block"; got {kind!r:.100}')
    groups = (tuple(block.layers.values()) for block in layout.blocks)
    return tuple(group for group in groups if len(group) > 1)


def units(table: SensitivityTable, sizes: Sizes, constraints: Constraints) -> list[Unit]:
    """Every unit with its options: the layers in the order of `sizes`, a tie group where its first layer
    stands, then the embeddings, then the KV cache where `sizes` counts a context or a limit speaks of it.

    AllocationError for constraints that contradict each other or name what is not in the model, and where
    the table has no number for a width that is on offer."""
    names = list(sizes.layers)
    limits = pins, floors, ceilings = tuple(
        _by_layer(what, getattr(constraints, what), names, sizes.cached)
        for what in ("pinned", "floor", "ceiling")
    )
    found = []
    for group in tie_groups(names, constraints.ties):
        there = [bits for bits in WEIGHT_BITS if all(bits in sizes.layers[name] for name in group)]
        widths = _allowed(group, constraints.widths, pins, floors, ceilings, there)
        found.append(unit_of(table, sizes, group, widths, constraints))
    if sizes.embeddings:
        known = {*EMBEDDING_BITS, *table.embeddings} if table.embeddings else {FULL}
        on_offer = [bits for bits in constraints.embeddings if bits in known] or list(constraints.embeddings)
        widths = _allowed((EMBEDDINGS,), on_offer, pins, floors, ceilings, list(sizes.embeddings))
        found.append(unit_of(table, sizes, (), widths, constraints))
    if sizes.context or any(CACHE_OF + block in limit for limit in limits for block in sizes.cached):
        found += _cache_units(table, sizes, constraints.cache, limits)
    return found


def _cache_units(
    table: SensitivityTable, sizes: Sizes, offered: Sequence[int], limits: Sequence[Mapping[str, int]]
) -> list[Unit]:
    """One for each block whose cache was measured by itself; one for all where the table knows the whole. As
    embeddings do, a cache of which nothing was measured counts as free, and nothing but a pin rounds it."""
    whole = not table.cache
    found = []
    for group in [sizes.cached] if whole else [(block,) for block in sizes.cached]:
        row = table.kv if whole else table.cache.get(group[0], {})
        measured = [bits for bits in offered if bits in {FULL, *row}]
        widths = _allowed([CACHE_OF + block for block in group], measured, *limits, list(sizes.token))
        share = len(group) * sizes.context
        taken = tuple(share * sizes.token[bits] // len(sizes.cached) for bits in widths)
        costs = tuple(_cost(table, row, bits, "the KV cache") if row else 0.0 for bits in widths)
        found.append(Unit((), widths, taken, costs, group))
    return found


def unit_of(
    table: SensitivityTable,
    sizes: Sizes,
    layers: tuple[str, ...],
    widths: Sequence[int],
    constraints: Constraints,
) -> Unit:
    """These layers (none: the embeddings) at these widths; AllocationError where there is no number.

    Embeddings of which nothing was measured count as free: nothing but a pin gives them a width then."""
    if layers:
        taken = [sum(sizes.layers[name][bits] for name in layers) for bits in widths]
        costs = [
            math.fsum(_layer_cost(table, name, bits, constraints.inputs(bits)) for name in layers)
            for bits in widths
        ]
    else:
        taken = [sizes.embeddings[bits] for bits in widths]
        known = bool(table.embeddings)
        costs = [_cost(table, table.embeddings, bits, EMBEDDINGS) if known else 0.0 for bits in widths]
    return Unit(layers, tuple(widths), tuple(taken), tuple(costs))


def _layer_cost(table: SensitivityTable, name: str, weights: int, inputs: int) -> float:
    if name not in table.layers:
        raise AllocationError(f"the sensitivity table is of another model: it has no layer {name!r}")
    cost = _cost(table, table.layers[name], weights, name)
    if inputs == FULL:
        return cost
    return cost + _cost(table, table.activations.get(name, {}), inputs, f"the inputs of {name}")


def _cost(table: SensitivityTable, row: Mapping[int, float], bits: int, what: str) -> float:
    if bits not in row:
        if bits == FULL and table.base == FULL_PRECISION:
            return 0.0
        there = f"; there are some at {_listed(sorted(row))}" if row else ""
        raise AllocationError(f"the sensitivity table has no number for {what} at {bits} bits{there}")
    if not math.isfinite(row[bits]):
        raise AllocationError(f"the sensitivity table says {row[bits]} for {what} at {bits} bits")
    return row[bits]


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def too_small(least: int, budget: int, context: int = 0) -> str:
    """What is wrong with a budget under the least possible, with the digits that tell the two apart."""
    digits = 1 if least - budget > 100_000 else 6
    tokens = f" with {context:,} tokens" if context else ""
    return (
        f"the smallest plan that these constraints allow has {least / 1e6:.{digits}f} MB{tokens}; the budget "
        f"is {budget / 1e6:.{digits}f} MB"
    )


def of_cache(key: str) -> bool:
    """Whether a limit speaks of the KV cache or a part of it."""
    return key == CACHE or key.startswith(CACHE_OF)


def _allowed(
    group: Sequence[str],
    widths: Sequence[int],
    pins: Mapping[str, int],
    floors: Mapping[str, int],
    ceilings: Mapping[str, int],
    there: Sequence[int],
) -> tuple[int, ...]:
    """The widths that all of a group may have, of those that are `there` in what the sizes are of."""
    pinned = {pins[name]: name for name in group if name in pins}
    if len(pinned) > 1:
        said = " and ".join(f"{name} is pinned to {bits}" for bits, name in sorted(pinned.items()))
        raise AllocationError(f"layers tied together share one width, but {said} bits")
    lowest, above = max(((floors[name], name) for name in group if name in floors), default=(0, ""))
    highest, below = min(((ceilings[name], name) for name in group if name in ceilings), default=(FULL, ""))
    if lowest > highest:
        raise AllocationError(
            f"{above} has a floor of {lowest} bits"
            + (f" and a ceiling of {highest}" if above == below else _tied_to(below, "ceiling", highest))
        )
    for bits, name in pinned.items():
        if not lowest <= bits <= highest:
            side, limit, other = ("floor", lowest, above) if bits < lowest else ("ceiling", highest, below)
            raise AllocationError(
                f"{name} is pinned to {bits} bits"
                + (f", but has a {side} of {limit}" if other == name else _tied_to(other, side, limit))
            )
    for bits, name in pinned.items():
        if bits not in there:
            raise AllocationError(
                f"{name} is pinned to {bits} bits, and the file holds it at {_listed(there)}"
            )
    allowed = tuple(pinned) or tuple(b for b in widths if lowest <= b <= highest and b in there)
    if not allowed and any(lowest <= bits <= highest for bits in widths):
        raise AllocationError(f"the file holds {group[0]} at {_listed(there)} bits, not at {_listed(widths)}")
    if not allowed:
        limits = [f"at least {lowest}"] * (lowest > 0) + [f"at most {highest}"] * (highest < FULL)
        raise AllocationError(
            f"{group[0]} must have {' and '.join(limits)} bits, and none of {_listed(widths)} is"
        )
    return allowed


def _tied_to(other: str, side: str, limit: int) -> str:
    return f", but is tied to {other}, which has a {side} of {limit}"


def _by_layer(
    what: str, rules: Mapping[str, int], names: Sequence[str], blocks: Sequence[str]
) -> dict[str, int]:
    """`{layer, "embeddings" or "kv:" and a block: bits}`, of the rules that fit one the last."""
    cache = [CACHE_OF + block for block in blocks]
    known, resolved = {*names, *cache, EMBEDDINGS}, {}
    for key, bits in rules.items():
        among = cache if of_cache(key) else names
        pattern = f"{CACHE_OF}*" if key == CACHE else key
        matching = [key] if key in known else list(filter(re.compile(translate(pattern)).match, among))
        if not matching and of_cache(key) and not cache:
            raise AllocationError(f"{what} {key!r}: there is no KV cache here, leave it out")
        if not matching:
            fits = "no block that keeps keys and values" if of_cache(key) else "no layer"
            raise AllocationError(f"{what} {key!r} fits {fits}{_hint(key, among)}")
        resolved.update(dict.fromkeys(matching, bits))
    return resolved


def _hint(key: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, [EMBEDDINGS, *names], n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; layers are named like {names[0]!r}" if names else ""


def tie_groups(names: Sequence[str], ties: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """All layers, each in one group; ties that share a layer are one."""
    group_of = {name: [name] for name in names}
    for tie in ties:
        for name in tie:
            if name not in group_of:
                raise AllocationError(f"layer {name!r} of a tie is not in this model{_hint(name, names)}")
        merged = list(dict.fromkeys(member for name in tie for member in group_of[name]))
        group_of.update(dict.fromkeys(merged, merged))
    seen = {id(group): group for group in group_of.values()}
    place = {name: position for position, name in enumerate(names)}
    return [tuple(sorted(group, key=place.__getitem__)) for group in seen.values()]


def _check(what: str, bits: object, allowed: Sequence[int | float]) -> None:
    if (type(bits), bits) not in [(type(width), width) for width in allowed]:
        raise AllocationError(f"{what} must be one of {_listed(allowed)} bits; got {bits!r:.100}")


def _listed(bits: Iterable[int]) -> str:
    return ", ".join(map(str, bits))


FREE = Constraints()
