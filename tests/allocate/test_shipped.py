"""Built-in models come with what a budget needs: sensitivities and a front of their own."""

import pytest
import torch

from quept import ElasticModel
from quept.allocate.front import fitting_front
from quept.allocate.solve.constraints import AS_WEIGHTS, Constraints
from quept.flow import allocate, table_of
from quept.plan import PrecisionPlan


@pytest.mark.parametrize("name", ["fashion-vit", "fashion-vit:weight-act", "easy-vqa"])
def test_a_budget_is_answered_by_size_and_by_points_of_accuracy(name):
    elastic = ElasticModel.open(name, device="cpu", dtype=torch.float32)
    table = table_of(elastic)
    front = fitting_front(elastic.origin.beside("front.json"), elastic)
    assert table.score == "top1" and len(front.points) >= 3
    half = elastic.sizes.deploy(PrecisionPlan.full()) // 3
    found = allocate(elastic, half)
    assert found.allocation.bytes <= half and found.kl >= 0
    found = allocate(elastic, "1 point")
    assert found.allocation.predicted["top1"] >= table.reference["top1"] - 0.01
    for point in front.points:
        assert elastic.sizes.deploy(point.plan) == point.bytes
        assert point.uniform is None or point.measured.kl <= point.uniform.kl


def test_the_language_model_with_rounded_inputs_has_both():
    elastic = ElasticModel.open("smollm2-135m:weight-act", device="cpu", dtype=torch.float32)
    table = table_of(elastic)
    front = fitting_front(elastic.origin.beside("front.json"), elastic)
    told = table.prediction(elastic.layers)
    assert {"sensitivity", "activations", "embeddings", "kv"} <= set(told)
    as_weights = Constraints(activations=AS_WEIGHTS)
    for point in front.points:
        found = allocate(elastic, point.budget, as_weights)
        assert found.kl <= point.measured.kl and found.allocation.bytes <= point.budget
