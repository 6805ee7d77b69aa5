"""Cascaded low-rank adapters: one pair (B, A) per linear layer serves every bit-width (QuEPT, MB-CLoRA).

    W_b = W + B[:, :r(b)] @ A[:r(b), :]        B (out, R), A (R, in), rounded to the grid of b bits afterwards

The bit groups are nested from high to low: with steps (0, 16, 16, 16) for the groups {7,8} {5,6} {3,4} {2}, 8
bits uses no rank, 6 the first 16, 4 the first 32 and 2 all 48. Each group therefore *owns* the ranks it adds
and *borrows* those of the groups above it. Calibration holds borrowed ranks constant (no gradient flows from
a low width into them): the published code lets it flow, and the low widths, whose losses are a thousand times
larger, pull the high ones away from full precision.

B starts at zero and A random, so calibration starts at the plain grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_RANKS = 16_384


@dataclass(frozen=True)
class RankSchedule:
    """groups: bit-widths that share their ranks, highest group first; steps: ranks each group adds to those
    above it. A width in no group has no adapter."""

    groups: tuple[tuple[int, ...], ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        widths = [bits for group in self.groups for bits in group]
        if len(self.groups) != len(self.steps) or not self.groups:
            raise ValueError(
                f"as many rank steps as bit groups are needed; got {len(self.steps)} steps for "
                f"{len(self.groups)} groups"
            )
        if len(set(widths)) < len(widths) or any(not group for group in self.groups):
            raise ValueError(f"each width belongs to one bit group; got {self.groups}")
        if any(min(a) <= max(b) for a, b in zip(self.groups, self.groups[1:], strict=False)):
            raise ValueError(f"bit groups go from high widths to low ones; got {self.groups}")
        if any(step < 0 for step in self.steps) or sum(self.steps) > MOST_RANKS:
            raise ValueError(f"rank steps are 0 or more, {MOST_RANKS:,} together; got {self.steps}")

    @property
    def total(self) -> int:
        """R, the rank of the lowest group."""
        return sum(self.steps)

    @property
    def widths(self) -> tuple[int, ...]:
        """All widths that belong to a group, ascending."""
        return tuple(sorted(bits for group in self.groups for bits in group))

    def group_of(self, bits: int) -> int:
        """Index of the group this width belongs to; -1 for a width in no group."""
        return next((i for i, group in enumerate(self.groups) if bits in group), -1)

    def ranks(self, bits: int) -> int:
        """r(b): how many ranks this width uses, its own and those of the groups above."""
        return sum(self.steps[: self.group_of(bits) + 1])


def new_adapter(rows: int, columns: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """B (rows, rank) of zeros and A (rank, columns), Kaiming-uniform as PyTorch starts a linear layer."""
    bound = 1 / math.sqrt(columns)
    a = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
    return torch.zeros(rows, rank), a


def adapter(b: Tensor, a: Tensor, schedule: RankSchedule, bits: int) -> Tensor | None:
    """What is added to a weight (out, in) at this width, None where nothing is; b (out, >= used ranks), a (>=
    used ranks, in)."""
    used = schedule.ranks(bits)
    return b[:, :used] @ a[:used] if used else None


def adapted(weight: Tensor, b: Tensor, a: Tensor, schedule: RankSchedule, bits: int) -> Tensor:
    """weight (out, in) + its adapter at this width."""
    added = adapter(b, a, schedule, bits)
    return weight if added is None else weight + added
