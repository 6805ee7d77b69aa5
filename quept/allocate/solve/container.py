"""A budget for the file of an export: its sizes to the byte, its widths, and what its engines fuse.

sizes, constraints = within(exporter("gguf"), elastic, constraints)
best(table, sizes, parse_budget("75 MB", table, sizes, constraints), constraints)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from quept.plan import FULL

from .constraints import FREE, AllocationError, Constraints

if TYPE_CHECKING:
    from quept.export import Exporter
    from quept.runtime import ElasticModel
    from quept.runtime.sizes import Sizes


def within(
    target: Exporter, elastic: ElasticModel, constraints: Constraints = FREE, sizes: Sizes | None = None
) -> tuple[Sizes, Constraints]:
    """Returns what the solver takes for files of this format: their sizes, and the constraints with their
    ties. sizes: `target.sizes(elastic)`, if it is at hand.

    AllocationError for a model that the format cannot hold, or constraints that its engines cannot run."""
    if lacking := target.lacks(elastic):
        raise AllocationError(lacking)
    if constraints.activations != FULL and not target.ours:
        raise AllocationError(
            f"engines of {target.title} do not round activations: leave them at {FULL} bits"
        )
    held = sizes or target.sizes(elastic)
    return held, replace(constraints, ties=(*constraints.ties, *target.ties(elastic)))
