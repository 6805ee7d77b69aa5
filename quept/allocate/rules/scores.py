"""The rules. Each gives every layer a cost at every width; what a rule does not say of widths goes with the
squared rounding error, a quarter for each bit more.

    gradient      |sum of gradient * (W_b - W)|: the first-order change of the loss
    fisher        sum of Fisher information * (W_b - W)^2, half the second-order change
    activations   squared error of the layer's output over its energy, by the second moments of its inputs
    error         squared error of the weights over their energy
    input-change  blocks that change their input most (1 - cosine) are the important ones
    relevance     layers that answers owe most to are, by relevance propagation
    z-score       layers with the most weights beyond one standard deviation are
    edges         the first and the last eighth of the blocks, and down projections, get a bit more
    depth         the earlier, the more important
    random        a draw
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from quept.data.windows import Windows
from quept.evaluate.tasks import ImageTask
from quept.plan import FULL, QUANTIZED_BITS
from quept.runtime.model import ElasticModel

from ..sensitivity.table import SensitivityTable
from .relevance import relevance
from .seen import Seen, seen

Costs = dict[str, dict[int, float]]
EDGE = 8  # a block in so many at either end is an edge
STEP = 4.0  # what a bit less costs, in squared error


@dataclass(frozen=True)
class Subject:
    """What a rule is asked about; data: the text that it may read, or the pictures."""

    elastic: ElasticModel
    data: Windows | ImageTask

    @cached_property
    def seen(self) -> Seen:
        """ValueError for pictures."""
        if not isinstance(self.data, Windows):
            rules = ", ".join(name for name, rule in RULES.items() if not rule.of_text)
            raise ValueError(f"this rule reads text: for a classifier of pictures give {rules}")
        return seen(self.elastic, self.data)

    def errors(self, cost: Callable[[str, Tensor, Tensor], Tensor]) -> Costs:
        """Costs by layer and width, from cost(layer, W_b - W, W)."""
        found: Costs = {}
        with torch.inference_mode():
            for name in self.elastic.layers:
                full = self.elastic.values(name, FULL).float()
                rounded = ((b, self.elastic.values(name, b).float()) for b in QUANTIZED_BITS)
                found[name] = {b: cost(name, weight - full, full).item() for b, weight in rounded}
        return found

    def shares(self, score: Mapping[str, float]) -> Costs:
        """Costs by layer and width from one score a layer, which counts for each of its weights."""
        weights = self.elastic.sizes.weights
        return {
            name: {b: score[name] * weights[name] * STEP**-b for b in QUANTIZED_BITS}
            for name in self.elastic.layers
        }


def gradient(subject: Subject) -> Costs:
    grads = subject.seen.gradient
    return subject.errors(lambda name, error, full: (grads[name] * error).sum().abs())


def fisher(subject: Subject) -> Costs:
    info = subject.seen.fisher
    return subject.errors(lambda name, error, full: (info[name] * error.square()).sum() / 2)


def activations(subject: Subject) -> Costs:
    moments = subject.seen.inputs

    def cost(name: str, error: Tensor, full: Tensor) -> Tensor:
        return (error.square() @ moments[name]).sum() / (full.square() @ moments[name]).sum()

    return subject.errors(cost)


def weight_error(subject: Subject) -> Costs:
    return subject.errors(lambda name, error, full: error.square().sum() / full.square().sum())


def input_change(subject: Subject) -> Costs:
    blocks = subject.elastic.layout.blocks
    return subject.shares({n: subject.seen.change[b.name] for b in blocks for n in b.layers.values()})


def by_relevance(subject: Subject) -> Costs:
    found, weights = relevance(subject.elastic, subject.data), subject.elastic.sizes.weights
    return subject.shares({name: score / weights[name] for name, score in found.items()})


def z_score(subject: Subject) -> Costs:
    def share(name: str) -> float:
        weight = subject.elastic.values(name, FULL).float()
        return ((weight - weight.mean()) > weight.std()).double().mean().item()

    return subject.shares({name: share(name) for name in subject.elastic.layers})


def edges(subject: Subject) -> Costs:
    blocks = subject.elastic.layout.blocks
    near, score = max(1, len(blocks) // EDGE), {}
    for i, block in enumerate(blocks):
        edge = i < near or i >= len(blocks) - near
        for role, name in block.layers.items():
            score[name] = STEP ** (edge + (role in ("down", "fc2")))
    return subject.shares(score)


def depth(subject: Subject) -> Costs:
    blocks = subject.elastic.layout.blocks
    falling = {n: STEP ** (1 - i / len(blocks)) for i, b in enumerate(blocks) for n in b.layers.values()}
    return subject.shares(falling)


def drawn(subject: Subject) -> Costs:
    rng = random.Random(0)
    return subject.shares({name: STEP ** rng.uniform(-1, 1) for name in subject.elastic.layers})


@dataclass(frozen=True)
class Rule:
    """costs: the function; source: who says so; of_text: whether it needs a text to read."""

    costs: Callable[[Subject], Costs]
    source: str
    of_text: bool = False


LAYERWISE = "Dumitru et al. 2024, arXiv 2406.17415"
RULES = {
    "gradient": Rule(
        gradient, "AutoRound (Cheng et al. 2023, arXiv 2309.05516) and mlx-lm's dynamic_quant", True
    ),
    "fisher": Rule(fisher, "SqueezeLLM (Kim et al. 2023, arXiv 2306.07629)", True),
    "activations": Rule(
        activations, "the layer-wise error of GPTQ (2210.17323) and AWQ (arXiv 2306.00978)", True
    ),
    "error": Rule(weight_error, "the usual measure of a quantizer by itself"),
    "input-change": Rule(input_change, f"layer input modification, {LAYERWISE}", True),
    "relevance": Rule(by_relevance, "LRP-QViT (Ranjan and Savakis 2024, arXiv 2401.11243), by the zero rule"),
    "z-score": Rule(z_score, f"z-score distribution, {LAYERWISE}"),
    "edges": Rule(edges, "the mixtures of llama.cpp's K-quants: more bits at both ends and for down_proj"),
    "depth": Rule(depth, "folklore: errors of early layers pass through all the others"),
    "random": Rule(drawn, "nobody: what any rule must beat"),
}  # fmt: skip


def rule_table(name: str, elastic: ElasticModel, data: Windows | ImageTask) -> SensitivityTable:
    """Returns the costs of a rule as a table that predicts nothing; ValueError for an unknown one, and for
    one that reads text where `data` are pictures."""
    if name not in RULES:
        raise ValueError(f"no rule {name!r}: give {', '.join(RULES)}")
    return table_with(RULES[name].costs(Subject(elastic, data)), elastic, name)


def table_with(costs: Costs, elastic: ElasticModel, name: str) -> SensitivityTable:
    """Returns these costs as a table that predicts nothing."""
    group = elastic.artifact.group
    return SensitivityTable(name, elastic.identity, group, "layer", {}, {}, costs, {})
