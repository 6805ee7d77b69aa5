"""A table, a front and a search of a model that sees, on pictures of its own."""

import pytest
import torch

from quept.allocate import SensitivityTable
from quept.allocate.front import load_front, measure_front
from quept.allocate.search.refine import refine
from quept.allocate.sensitivity.on_data import measure_on_data
from quept.allocate.solve.constraints import Constraints
from quept.allocate.solve.solver import allocate
from quept.data.images import save_images
from quept.evaluate import ImageTask
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import save_tiny_vision


@pytest.fixture(scope="module")
def elastic(tmp_path_factory) -> ElasticModel:
    folder = save_tiny_vision("vit", tmp_path_factory.mktemp("seeing") / "tiny-vit")
    pixels = torch.randint(
        0, 256, (40, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    save_images(folder / "images.safetensors", "noise", pixels, torch.arange(40) % 10)
    return ElasticModel.open(folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def task(elastic, tmp_path_factory) -> ImageTask:
    return ImageTask(elastic, tmp_path_factory.mktemp("references"))


@pytest.fixture(scope="module")
def table(elastic, task, tmp_path_factory) -> SensitivityTable:
    return measure_on_data(elastic, task.first(20), task, (2, 3, 4, 8), whole=("W4E4",), activations=True)


def kl(elastic, task, plan: PrecisionPlan) -> float:
    *_, last = task.estimates(elastic.view(plan), plan)
    return last.payload["kl"]


def test_a_cost_is_the_divergence_of_the_model_with_that_layer_rounded(elastic, task, table):
    name = elastic.layers[0]
    assert table.layers[name][2] == pytest.approx(
        kl(elastic, task.first(20), PrecisionPlan.of({name: 2})), rel=1e-3
    )
    assert table.uniform[4]["kl"] == pytest.approx(kl(elastic, task, PrecisionPlan.uniform(4)))
    *_, whole = task.estimates(elastic.view(PrecisionPlan.full()))
    assert table.reference == {"top1": whole.payload["top1_ref"], "tokens": 40}  # of the same pictures
    assert table.score == "top1" and set(table.activations) == set(elastic.layers)
    assert table.predicted(PrecisionPlan.uniform(4))["kl"] == pytest.approx(table.uniform[4]["kl"])


def test_a_cut_measurement_goes_on_and_gives_the_same_table(elastic, task, table, tmp_path):
    class Killed(Exception):
        pass

    def kill(stage, fraction):
        if fraction > 0.5:
            raise Killed

    lines = tmp_path / "lines.jsonl"
    options = {"whole": ("W4E4",), "activations": True, "resume": lines}
    with pytest.raises(Killed):
        measure_on_data(elastic, task.first(20), task, (2, 3, 4, 8), progress=kill, **options)
    assert measure_on_data(elastic, task.first(20), task, (2, 3, 4, 8), **options) == table


def test_a_search_and_a_front_on_its_pictures(elastic, task, table, tmp_path):
    budget = elastic.sizes.deploy(PrecisionPlan.uniform(4))
    limits = Constraints(widths=(2, 3, 4, 8), embeddings=(4, 8, 16))
    start = allocate(table, elastic.sizes, budget, limits).plan
    options = {"table": table, "constraints": limits, "seconds": None, "trials": 4}
    *_, found = refine(elastic, start, budget, task.first(20), task, **options)
    assert found.final and elastic.sizes.deploy(found.plan) <= budget
    assert found.verified["refined"]["kl"] == pytest.approx(kl(elastic, task, found.plan), rel=1e-6) or (
        found.chosen != "refined"
    )
    out = tmp_path / "front.json"
    options = {"constraints": limits, "seconds": None, "trials": 4, "out": out, "model": "tiny"}
    front = measure_front(elastic, table, task.first(20), task, (4, 6), **options)
    assert load_front(out) == front and front.points
    (name, key, payload), *_ = front.results(elastic.layers)
    assert key.data == task.id and payload["tokens"] == 40 and task.read(payload)["kl"].value == payload["kl"]
