"""A budget for a file is met by the file: its bytes, its widths, its ties."""

import pytest
import torch

from quept.allocate.solve.best import best
from quept.allocate.solve.container import within
from quept.allocate.solve.solver import AllocationError, Constraints, allocate
from quept.export import exporter
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.app.tiny import tiny_table
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def elastic(tmp_path_factory):
    folder = save_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")
    return ElasticModel.open(folder, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("name", ["mlx", "compressed-tensors", "packed"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_file_has_the_bytes_that_the_budget_said(name, share, elastic, tmp_path):
    target = exporter(name)
    sizes, constraints = within(target, elastic)
    low, high = (sum(pick(row.values()) for row in sizes.layers.values()) for pick in (min, max))
    budget = int(sizes.fixed + sizes.embeddings[16] + low + share * (high - low))
    found = best(tiny_table(elastic), sizes, budget, constraints).allocation
    assert found.bytes <= budget and target.refuses(elastic, found.plan) is None
    assert target.write(elastic, found.plan, tmp_path / "out").nbytes == found.bytes


def test_what_a_format_lacks_is_never_chosen_and_a_pin_to_it_refused(elastic):
    table, target = tiny_table(elastic), exporter("compressed-tensors")
    sizes, constraints = within(target, elastic, Constraints(embeddings=(4, 16)))
    plan = allocate(table, sizes, 2 * sizes.deploy(PrecisionPlan.full()), constraints).plan
    assert plan.embeddings == 16
    pinned = Constraints(pinned={"embeddings": 4}, ties=constraints.ties)
    with pytest.raises(AllocationError, match="pinned to 4 bits, and the file holds it at 16"):
        allocate(table, sizes, 10**9, pinned)


def test_activations_that_no_engine_rounds_are_refused(elastic):
    with pytest.raises(AllocationError, match="MLX do not round activations"):
        within(exporter("mlx"), elastic, Constraints(activations=8))
