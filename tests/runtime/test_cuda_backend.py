"""Views over packed codes on CUDA: their Triton kernels in the interpreter, on the CPU, in a process of its
own, since Triton decides on it when it is first imported."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from quept.kernels import missing
from quept.runtime.backends import BACKENDS, Dense, backend_for

CUDA = torch.device("cuda")
PROGRAM = """
import sys, torch
from transformers import DynamicCache
from quept import ElasticModel, PrecisionPlan, load
from quept.artifact import Artifact
from quept.kernels.triton_packed import TritonWeight
from quept.runtime import backends
from tests.tiny import close, save_tiny, token_ids

class Interpreted(backends.PackedCuda):
    missing = classmethod(lambda cls, device, dtype: "")

loaded = load(save_tiny("llama", sys.argv[1]))
packed, dense = (
    ElasticModel(loaded, Artifact.rtn(loaded), device="cpu", dtype=torch.float32)
    for backends.BACKENDS["cpu"] in (Interpreted, backends.Dense)
)
ids = token_ids(1, 24)
for plan in (PrecisionPlan.of({"*.v_proj": 8, "*.k_proj": 3}, default=5, embeddings=4), PrecisionPlan.full()):
    views, caches = [one.view(plan) for one in (packed, dense)], [DynamicCache(), DynamicCache()]
    for chunk in ids.split([22, 1, 1], dim=1):
        with torch.no_grad():
            found, expected = (v(chunk, cache=c).logits for v, c in zip(views, caches, strict=True))
        assert close(found, expected), plan.name
held = [m.codes for m in packed.view(PrecisionPlan.uniform(4)).modules() if hasattr(m, "codes")]
assert len(held) >= len(packed.layers) and all(type(codes) is TritonWeight for codes in held)
"""


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_views_multiply_packed_codes_and_answer_as_dense_ones(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "tiny"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_without_triton_weights_are_multiplied_dense_on_cuda(monkeypatch):
    monkeypatch.setattr("quept.runtime.backends.cuda.find_spec", lambda name: None)
    assert type(backend_for(CUDA, torch.bfloat16)) is Dense
    assert "pip install triton" in BACKENDS["cuda"].missing(CUDA, torch.bfloat16)


def test_a_weight_on_another_device_is_copied_to_the_one_that_multiplies():
    weight = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert backend_for(CUDA, torch.bfloat16).untouched(weight) is None
    assert Dense(torch.bfloat16).untouched(weight) is weight
