"""What a run will cost is computed from shapes alone: the bytes are those of the opened model."""

import json

import pytest

from quept.cli import main
from quept.config import Recipe
from quept.costs import Machine, costs, shapes_of
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import save_tiny, save_tiny_vision
from tests.tiny_vlm import save_tiny_vlm

STATED = Machine(1e12, 1e11)
MAKERS = {
    "llama": save_tiny,
    "phi3": save_tiny,
    "mixtral": save_tiny,
    "swin": save_tiny_vision,
    "llava": save_tiny_vlm,
}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request, tmp_path_factory):
    return MAKERS[request.param](request.param, tmp_path_factory.mktemp(request.param) / "model")


def test_the_bytes_of_every_plan_are_those_of_the_opened_model(folder):
    shapes, elastic = shapes_of(str(folder)), ElasticModel.open(folder, device="cpu")
    assert shapes.kind == elastic.kind and shapes.sizes.parameters == elastic.sizes.parameters
    for bits in (2, 4, 8, 16):
        assert shapes.sizes.deploy(PrecisionPlan.uniform(bits)) == elastic.sizes.deploy(
            PrecisionPlan.uniform(bits)
        )


def test_every_step_has_a_time_and_a_machine_twice_as_fast_takes_less(folder):
    shapes = shapes_of(str(folder))
    found = list(costs(shapes, STATED, Recipe.load("tiny")))
    faster = list(costs(shapes, Machine(2e12, 2e11), Recipe.load("tiny")))
    assert len(found) == 6 and all(cost.seconds > 0 and cost.memory > 0 for cost in found)
    assert all(b.seconds <= a.seconds for a, b in zip(found, faster, strict=True))


def test_one_token_passes_the_experts_that_it_chooses(tmp_path):
    few = shapes_of(str(save_tiny("mixtral", tmp_path / "few", num_experts_per_tok=1)))
    all_of_them = shapes_of(str(save_tiny("mixtral", tmp_path / "all", num_experts_per_tok=4)))
    assert all_of_them.multiplied - few.multiplied == 2 * 3 * 3 * 64 * 96


def test_the_command_prints_a_table_and_one_line_for_scripts(tmp_path, capsys):
    folder = save_tiny("llama", tmp_path)
    stated = ["--tflops", "100", "--bandwidth", "1000", "--recipe", "tiny", "--json"]
    assert main(["plan-run", str(folder), *stated]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "machine stated: 1e+05 GFLOP/s" in lines[0] and lines[1].startswith("step")
    found = json.loads(lines[-1])
    assert found["flops"] == 1e14 and "calibrate by tiny" in found["costs"]


def test_half_a_stated_machine_and_no_model_are_refused_in_words(tmp_path, capsys):
    assert main(["plan-run", str(save_tiny("llama", tmp_path)), "--tflops", "3"]) == 2
    assert "--tflops 100 --bandwidth 1000" in capsys.readouterr().err
    assert main(["plan-run", "nowhere"]) == 1
    assert "cannot plan a run of 'nowhere'" in capsys.readouterr().err
