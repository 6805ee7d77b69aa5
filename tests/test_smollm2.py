"""The real SmolLM2, end to end: opened from the zoo, seen at W4, measured on Wikipedia text."""

from __future__ import annotations

import pytest
import torch

from quept import ElasticModel, PrecisionPlan, load, zoo
from quept.artifact import variants
from quept.evaluate import TextTask, cut, divergence, open_reference

pytestmark = pytest.mark.slow

BAND = {16: (19.6, 21.2), 4: (25.0, 27.6)}  # 4,096 tokens give 20.37 and 26.27 in float32


def test_perplexity_at_full_precision_and_w4_lies_in_its_band(smollm2):
    elastic = ElasticModel.open("smollm2-135m:rtn", dtype=torch.float32)
    task = TextTask(elastic)
    for bits, (low, high) in BAND.items():
        *_, last = task.estimates(elastic.view(PrecisionPlan.uniform(bits)))
        assert low < last["ppl"].value < high, f"perplexity {last['ppl'].value:.2f} at {bits} bits"


# what 1,024 tokens may show at most, as a share of round-to-nearest's divergence; see benchmarks/quality.py
AT_MOST = {
    "weight-only": {"W2": 0.2, "W3": 0.45, "W4": 0.5, "W5": 0.6, "W8": 0.7},
    "weight-act": {"W4A4": 0.35, "W6A6": 0.3, "W8A8": 0.3},
    "mobiquant": {"W2": 0.25, "W4": 0.6, "W6": 0.7, "W8": 0.8},
}


@pytest.mark.parametrize("variant", AT_MOST)
def test_the_bundled_artifacts_beat_plain_rounding_at_every_width(smollm2, tmp_path, variant):
    assert variants("smollm2-135m") == tuple(AT_MOST)
    base = load("smollm2-135m")
    ours, plain = (
        ElasticModel.open(f"smollm2-135m:{name}", dtype=torch.float32, base=base) for name in (variant, "rtn")
    )
    windows = cut(zoo.text("boolq-passages"), base.tokenizer, context=512, tokens=1024)
    reference = open_reference(plain, windows, tmp_path)
    for name, share in AT_MOST[variant].items():
        plan = PrecisionPlan.parse(name)
        (*_, left), (*_, right) = (divergence(e.view(plan), reference, windows) for e in (ours, plain))
        assert left.kl < share * right.kl, f"{name}: {left.kl:.4f} against {right.kl:.4f}"
    assert ours.artifact.nbytes < 60e6
