"""How far two sensitivity tables of one model agree on what is fragile.

    found = agreement(on_prose, on_own_words, elastic.layout)
    found.correlation            # Spearman's, of what each layer costs at 3 bits
    found.apart[0]               # (name, ratio): the layer on which they differ most

Costs are larger on a text that surprises the model more, so ratios, of the other's cost to the one's, are
counted in those of the median layer. Where one of them was measured per block, blocks are compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .table import SMALLEST, SensitivityTable

if TYPE_CHECKING:
    from quept.models import ModelLayout

COMPARED = 3  # bits: where rounding hurts and shares are not yet of answers that are all wrong
ALIKE = 0.9  # the correlation from which on two orders are the same to a reader
SHOWN = 3  # of those that differ most


@dataclass(frozen=True)
class Agreement:
    """of: "layers" or "blocks". mixed: whether only one of the tables was measured per block, so that part of
    the difference is how. apart: all of them with their ratio, the farthest from 1 first."""

    bits: int
    of: str
    mixed: bool
    correlation: float
    apart: tuple[tuple[str, float], ...]

    def describe(self) -> str:
        """It in one sentence."""
        names = ", ".join(f"{name} ({ratio:.2g} times as much)" for name, ratio in self.apart[:SHOWN])
        how = "; one was measured by whole blocks, which is part of the difference" if self.mixed else ""
        depends = "hardly depends" if self.correlation >= ALIKE else "depends"
        return (
            f"Which {self.of} are fragile {depends} on the text: at {self.bits} bits the two orders of the "
            f"{len(self.apart)} {self.of} agree with a rank correlation of {self.correlation:.2f} (1: same "
            f"order, 0: unrelated){how}. They differ most on {names}"
        )


def agreement(
    one: SensitivityTable, other: SensitivityTable, layout: ModelLayout, bits: int = COMPARED
) -> Agreement:
    """Both tables hold all layers of the layout at this width."""
    by_block = "block" in (one.per, other.per)
    units = {block.name: tuple(block.layers.values()) for block in layout.blocks}
    if not by_block:
        units = {name: (name,) for name in layout.layers}
    costs = [
        np.array([math.fsum(table.layers[name][bits] for name in layers) for layers in units.values()])
        for table in (one, other)
    ]
    ratios = np.maximum(costs[1], SMALLEST) / np.maximum(costs[0], SMALLEST)
    ratios /= np.median(ratios)
    apart = sorted(zip(units, ratios.tolist(), strict=True), key=lambda row: -abs(math.log(row[1])))
    return Agreement(
        bits, "blocks" if by_block else "layers", one.per != other.per, rank_correlation(*costs), tuple(apart)
    )


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, to three digits."""
    places = [np.argsort(np.argsort(values)) for values in (one, other)]
    return round(float(np.corrcoef(*places)[0, 1]), 3)
