"""The real SmolLM2, end to end: opened from the zoo, seen at W4, measured on Wikipedia text."""

from __future__ import annotations

import torch

from quept import ElasticModel, PrecisionPlan, zoo
from quept.evaluate import cut, perplexity

BAND = {16: (19.6, 21.2), 4: (25.0, 27.6)}  # 4,096 tokens give 20.37 and 26.27 in float32


def test_perplexity_at_full_precision_and_w4_lies_in_its_band(smollm2):
    elastic = ElasticModel.open("smollm2-135m:rtn", dtype=torch.float32)
    windows = cut(zoo.text("boolq-passages"), elastic.tokenizer, context=512, tokens=4096)
    for bits, (low, high) in BAND.items():
        *_, last = perplexity(elastic.view(PrecisionPlan.uniform(bits)), windows)
        assert low < last.ppl < high, f"perplexity {last.ppl:.2f} at {bits} bits"
