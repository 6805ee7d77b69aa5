"""`from quept import ...` gives the whole flow, whatever was imported before."""

import inspect
import subprocess
import sys

import pytest

import quept
from quept import ElasticModel, PrecisionPlan, allocate, calibrate, evaluate, export, refine, sensitivity
from quept.runtime import Sampling

from .tiny import save_tiny

W4 = PrecisionPlan.uniform(4)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(chr(97 + i * i % 23) for i in range(400)))
    return str(path)


@pytest.fixture(scope="module")
def elastic(tmp_path_factory) -> ElasticModel:
    return ElasticModel.open(save_tiny("llama", tmp_path_factory.mktemp("model")))


def test_the_readmes_flow_runs_from_a_model_to_a_file(elastic, text, tmp_path, monkeypatch):
    monkeypatch.setenv("QUEPT_CACHE", str(tmp_path / "cache"))
    sample = {"text": text, "tokens": 64, "context": 16}
    kl = evaluate(elastic, W4, **sample)["kl"].value
    assert 0 < kl < evaluate(elastic, PrecisionPlan.uniform(2), **sample)["kl"].value
    table = sensitivity(elastic, text, 32, 32, 16, whole=())
    size = elastic.sizes.deploy(W4)
    found = allocate(elastic, f"{size / 1e6} MB", table=table)
    assert elastic.sizes.deploy(found.allocation.plan) <= size
    (tmp_path / "other.txt").write_text("".join(chr(97 + i * i * i % 19) for i in range(1200)))
    better = refine(
        elastic,
        W4,
        text=text,
        search_text=str(tmp_path / "other.txt"),
        tokens=64,
        context=16,
        trials=4,
        table=table,
    )
    assert better.final and elastic.sizes.deploy(better.plan) <= size
    packed = export(elastic, better.plan, tmp_path / "out.safetensors")
    assert export(elastic, PrecisionPlan.uniform(4), tmp_path / "x.gguf", to="gguf").layers == len(
        elastic.layers
    )
    assert packed.nbytes == elastic.sizes.deploy(better.plan)


def test_a_view_answers_as_text_or_token_by_token(elastic):
    greedy = Sampling(temperature=0.0, max_tokens=5)
    said = [event.text for event in elastic.stream(W4, "abc", greedy)]
    assert "".join(said) == elastic.generate(W4, [{"role": "user", "content": "abc"}], greedy)


def test_a_task_that_a_model_lacks_is_refused_by_name(elastic):
    with pytest.raises(ValueError, match="no task 'chess'"):
        evaluate(elastic, W4, "chess")


@pytest.mark.slow
def test_a_stage_is_its_package_and_its_function_whichever_was_imported_first():
    stages = ("allocate", "calibrate", "evaluate", "export")
    lines = [f"import quept.{name}; from quept import {name}; assert callable({name})" for name in stages]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
    for name in stages:
        assert inspect.signature(getattr(quept, name)) == inspect.signature(getattr(quept.flow, name))


def test_plans_alone_import_no_torch():
    code = "import sys; from quept import PrecisionPlan; import quept.flow; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_recipe_is_found_by_its_name(tmp_path):
    with pytest.raises(Exception, match="no-such-recipe"):
        calibrate("smollm2-135m", "no-such-recipe", tmp_path)
