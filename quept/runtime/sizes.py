"""How many bytes a plan takes: the *deploy* size, if that plan alone were shipped.

A quantized layer, and embeddings that a plan gives a width, weigh their packed codes, scales and zero-points;
what is at 16 bits, and everything that is never quantized (norms, biases, positions), weighs 2 bytes a
parameter. Tied parameters count once. The export writes exactly these tensors, and a test holds the file to
this count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quept.models import LoadedModel
from quept.numerics.grid import group_size, quantized_bytes
from quept.plan import EMBEDDING_BITS, FULL, QUANTIZED_BITS, PrecisionPlan

BYTES_PER_FULL_WEIGHT = 2


@dataclass(frozen=True)
class Sizes:
    """layers: bytes of each layer's weight at each width, `{name: {bits: bytes}}`. weights: its number of
    weights, `{name: n}`. embeddings: bytes of embedding and heads together at each width. fixed:
    bytes of all that no plan touches. parameters: how many the model has, all counted."""

    layers: Mapping[str, Mapping[int, int]]
    weights: Mapping[str, int]
    embeddings: Mapping[int, int]
    fixed: int
    parameters: int

    @classmethod
    def of(cls, loaded: LoadedModel, group: int | str, parameters: int | None = None) -> Sizes:
        """parameters: those of the model as it was published, where a transform has untied its head."""
        layers, embeddings = loaded.layout.layers, loaded.embeddings
        shapes = {name: loaded.model.get_submodule(name).weight.shape for name in (*layers, *embeddings)}
        table = {name: _at_widths(shape[0], shape[1:].numel(), group) for name, shape in shapes.items()}
        both = {bits: sum(table[name][bits] for name in embeddings) for bits in EMBEDDING_BITS}
        stored = sum(p.numel() for p in loaded.model.parameters())
        fixed = BYTES_PER_FULL_WEIGHT * (stored - sum(shape.numel() for shape in shapes.values()))
        weights = {name: shapes[name].numel() for name in layers}
        return cls({name: table[name] for name in layers}, weights, both, fixed, parameters or stored)

    def deploy(self, plan: PrecisionPlan) -> int:
        """Bytes of the model at this plan."""
        layers = plan.resolve(self.layers).items()
        blocks = sum(self.layers[name][bits.weights] for name, bits in layers)
        return self.fixed + self.embeddings[plan.embeddings] + blocks

    def bits_per_parameter(self, plan: PrecisionPlan) -> float:
        return 8 * self.deploy(plan) / self.parameters


def _at_widths(rows: int, columns: int, group: int | str) -> dict[int, int]:
    g = group_size(columns, group)
    packed = {bits: quantized_bytes(rows, columns, bits, g) for bits in QUANTIZED_BITS}
    return packed | {FULL: BYTES_PER_FULL_WEIGHT * rows * columns}
