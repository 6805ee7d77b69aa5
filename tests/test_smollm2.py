"""The real SmolLM2, end to end: opened from the zoo at its widths, measured on passages of Wikipedia."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import pytest
import torch

from quept import ElasticModel, PrecisionPlan, load, zoo
from quept.artifact import variants
from quept.evaluate import Estimate, cut, divergence, open_reference
from quept.models import LoadedModel

pytestmark = pytest.mark.slow

TOKENS = 256
BAND = {16: (18.9, 20.4), 4: (24.2, 26.3)}  # these tokens give 19.63 and 25.22 in float32


def opened(base: LoadedModel, variant: str) -> ElasticModel:
    return ElasticModel.open(f"smollm2-135m:{variant}", dtype=torch.float32, base=base)


@pytest.fixture(scope="module")
def base(smollm2) -> LoadedModel:
    return load("smollm2-135m")


@pytest.fixture(scope="module")
def measure(base, tmp_path_factory) -> Callable[[ElasticModel, str], Estimate]:
    """Measures a plan of any artifact, on the same tokens."""
    windows = cut(zoo.text("boolq-passages"), base.tokenizer, context=TOKENS, tokens=TOKENS)
    reference = open_reference(opened(base, "rtn"), windows, tmp_path_factory.mktemp("reference"))

    def measured(elastic: ElasticModel, plan: str) -> Estimate:
        *_, last = divergence(elastic.view(PrecisionPlan.parse(plan)), reference, windows)
        return last

    return measured


@pytest.fixture(scope="module")
def rounded(base, measure) -> Callable[[str], Estimate]:
    """Measures a plan of round-to-nearest, each once."""
    return cache(partial(measure, opened(base, "rtn")))


def test_perplexity_at_full_precision_and_w4_lies_in_its_band(rounded):
    estimate = rounded("W4")
    for bits, found in ((16, estimate.ppl_ref), (4, estimate.ppl)):
        low, high = BAND[bits]
        assert low < found < high, f"perplexity {found:.2f} at {bits} bits"


# what so few tokens may show at most, as a share of round-to-nearest's divergence; see benchmarks/quality.py
AT_MOST = {
    "weight-only": {"W2": 0.2, "W3": 0.45, "W4": 0.5, "W5": 0.6, "W8": 0.7},
    "weight-act": {"W4A4": 0.35, "W6A6": 0.3, "W8A8": 0.3},
    "mobiquant": {"W2": 0.25, "W4": 0.6, "W6": 0.7, "W8": 0.8},
}


@pytest.mark.parametrize("variant", AT_MOST)
def test_the_bundled_artifacts_beat_round_to_nearest_at_every_width(base, measure, rounded, variant):
    assert variants("smollm2-135m") == tuple(AT_MOST)
    elastic = opened(base, variant)
    for plan, share in AT_MOST[variant].items():
        ours, theirs = measure(elastic, plan).kl, rounded(plan).kl
        assert ours < share * theirs, f"{plan}: {ours:.4f} against {theirs:.4f}"
    assert elastic.artifact.nbytes < 60e6
