"""Nothing that we call of torch, transformers, timm and Gradio is on its way out: with such warnings as
errors a model of every kind opens, answers and is measured, calibration runs, and the app is drawn."""

import warnings

import pytest
import torch

from app.serve import build_app
from app.service import Sample, Service
from quept import ElasticModel, PrecisionPlan
from quept.calibrate import calibrate
from quept.config import Recipe
from quept.evaluate import Results
from quept.runtime import Sampling, stream
from tests.app.tiny import tiny_elastic
from tests.tiny import pictures, save_tiny, save_tiny_vision, token_ids
from tests.tiny_vlm import picture, save_tiny_vlm

pytestmark = pytest.mark.slow

PLAN = PrecisionPlan.uniform(4)


@pytest.fixture(autouse=True)
def strict():
    with warnings.catch_warnings():
        for kind in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
            warnings.simplefilter("error", kind)
        yield


def test_a_language_model(tmp_path):
    elastic = ElasticModel.open(save_tiny("llama", tmp_path), device="cpu")
    view = elastic.view(PLAN)
    assert view.generate(token_ids(1, 4), max_new_tokens=2, do_sample=False).shape[1] <= 6
    messages = [{"role": "user", "content": "hello"}]
    assert list(stream(view, elastic.tokenizer, messages, Sampling(temperature=0.0, max_tokens=3)))


def test_calibration(tmp_path):
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    recipe = Recipe.from_dict(
        {
            "name": "tiny",
            "note": "for tests",
            "group": 32,
            "text": {"sources": {str(tmp_path / "text.txt"): 1}},
            "adapters": {"groups": [[4]], "steps": [1]},
            "clip": {"start": {4: 4.0}},
            "end_to_end": {
                "steps": 2,
                "batch": 1,
                "context": 32,
                "adapter_rates": [1e-3],
                "clip_rate": 1e-2,
                "draws": [[4]],
            },
        }
    )
    calibrate(save_tiny("llama", tmp_path / "model"), recipe, tmp_path / "out", device="cpu")


def test_a_classifier(tmp_path):
    elastic = ElasticModel.open(save_tiny_vision("swin", tmp_path), device="cpu", dtype=torch.float32)
    assert elastic.view(PLAN)(pictures("swin")).isfinite().all()


def test_a_model_that_sees(tmp_path):
    elastic = ElasticModel.open(save_tiny_vlm("qwen2-vl", tmp_path), device="cpu", dtype=torch.float32)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}]
    sampling, seen = Sampling(temperature=0.0, max_tokens=3), {"processor": elastic.processor}
    assert list(
        stream(elastic.view(PLAN), elastic.tokenizer, messages, sampling, **seen, pictures=[picture()])
    )


def test_the_app(tmp_path):
    sample = Sample("The quick brown fox jumps over the lazy dog. " * 40, "foxes", tokens=128, context=64)
    service = Service({"tiny": tiny_elastic()}, sample, Results.open(tmp_path / "results.sqlite"), tmp_path)
    assert build_app(service).blocks
    assert [state for state in service.measure("tiny", PLAN, "visitor") if state["estimate"]]
