"""How many bytes a plan takes: the *deploy* size, if that plan alone were shipped.

A quantised layer weighs its packed codes, scales and zero-points; a layer at 16 bits, and everything that is
never quantised (embeddings, head, norms, biases), weighs 2 bytes a parameter. Tied parameters count once. The
export writes exactly these tensors, and a test holds the file to this count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from quept.numerics.grid import group_size, quantised_bytes
from quept.plan import FULL, QUANTISED_BITS, PrecisionPlan

BYTES_PER_FULL_WEIGHT = 2


@dataclass(frozen=True)
class Sizes:
    """layers: bytes of each layer's weight at each width, `{name: {bits: bytes}}`. weights: its number of
    weights, `{name: n}`. fixed: bytes of all that no plan touches. parameters: how many the model has, all
    counted."""

    layers: Mapping[str, Mapping[int, int]]
    weights: Mapping[str, int]
    fixed: int
    parameters: int

    @classmethod
    def of(
        cls, model: nn.Module, layers: tuple[str, ...], group: int | str, parameters: int | None = None
    ) -> Sizes:
        """parameters: those of the model as it was published, where a transform has untied its head."""
        table, weights = {}, {}
        for name in layers:
            rows, columns = model.get_submodule(name).weight.shape
            g = group_size(columns, group)
            table[name] = {bits: quantised_bytes(rows, columns, bits, g) for bits in QUANTISED_BITS}
            table[name][FULL] = BYTES_PER_FULL_WEIGHT * rows * columns
            weights[name] = rows * columns
        stored = sum(p.numel() for p in model.parameters())
        fixed = BYTES_PER_FULL_WEIGHT * (stored - sum(weights.values()))
        return cls(table, weights, fixed, parameters or stored)

    def deploy(self, plan: PrecisionPlan) -> int:
        """Bytes of the model at this plan."""
        return self.fixed + sum(
            self.layers[name][bits.weights] for name, bits in plan.resolve(self.layers).items()
        )

    def bits_per_parameter(self, plan: PrecisionPlan) -> float:
        return 8 * self.deploy(plan) / self.parameters
