"""What a change of precision costs, and what a view costs to run: against the plain model, in one process,
same dtype.

    python benchmarks/switching.py [--model smollm2-135m] [--repeats 5]

Limits: a warm change makes objects and moves no weights; a cold one reads each 16-bit weight once, and writes
codes and dense values once. A view's forward pass runs the same matrix products as the plain model, so its
ratio should be 1. Decoding reads every dense weight once a token.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable

import psutil
import torch
from report import report

from quept import ElasticModel, PrecisionPlan
from quept.plan import QUANTIZED_BITS
from quept.runtime import Sampling, stream

PROMPT = "Describe, step by step, how a bill becomes a law."
TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    elastic = ElasticModel.open(options.model)
    gc.collect()
    gc.freeze()  # as the app does once it has loaded
    figures = layer_switch(elastic, options.repeats) | uniform_switch(elastic)
    figures["rss_gb"] = psutil.Process().memory_info().rss / 1e9  # every uniform width has been tried by now
    figures |= against_plain(elastic, options.repeats)
    report("Switching precision and running views", figures, model=options.model, dtype=str(elastic.dtype))


def layer_switch(elastic: ElasticModel, repeats: int) -> dict[str, float]:
    """Median milliseconds from asking for one changed layer to having the view; widths new to the bank, then
    known to it."""
    keep = elastic.view(PrecisionPlan.uniform(4))
    middle = elastic.layers[len(elastic.layers) // 2 :]
    plans = [PrecisionPlan.of({layer: 6}, default=4) for layer in middle[:repeats]]
    cold = [milliseconds(lambda p=p: elastic.view(p)) for p in plans]
    warm = [milliseconds(lambda p=p: elastic.view(p)) for p in plans]
    del keep
    return {"layer_cold_ms": statistics.median(cold), "layer_warm_ms": statistics.median(warm)}


def uniform_switch(elastic: ElasticModel) -> dict[str, float]:
    """The same for all layers at once, over every width; warm alternates between two widths."""
    cold = [
        milliseconds(lambda b=b: elastic.view(PrecisionPlan.uniform(b))) for b in QUANTIZED_BITS if b != 4
    ]
    for bits in (3, 4):
        elastic.view(PrecisionPlan.uniform(bits))
    warm = [milliseconds(lambda b=b: elastic.view(PrecisionPlan.uniform(b))) for b in (3, 4) * 5]
    return {"uniform_cold_ms": statistics.median(cold), "uniform_warm_ms": statistics.median(warm)}


def against_plain(elastic: ElasticModel, repeats: int) -> dict[str, float]:
    """Forward time and decode rate of a view over the plain model's, taken in turns."""
    view = elastic.view(PrecisionPlan.uniform(4))
    plain = copy.deepcopy(elastic.base).to(elastic.dtype)
    ids = torch.randint(0, elastic.config.vocab_size, (1, 512), generator=torch.Generator().manual_seed(0))

    def forward(model) -> None:
        with torch.inference_mode():
            model(ids, use_cache=False)

    forward(view), forward(plain)
    times = [
        (milliseconds(lambda: forward(view)), milliseconds(lambda: forward(plain))) for _ in range(repeats)
    ]
    rates = [(decode_view(elastic, view), decode_plain(elastic, plain)) for _ in range(repeats + 1)][1:]
    return {
        "forward_ratio": statistics.median(a / b for a, b in times),
        "decode_ratio": statistics.median(a / b for a, b in rates),
        "view_tokens_per_s": statistics.median(a for a, _ in rates),
        "plain_tokens_per_s": statistics.median(b for _, b in rates),
        "forward_512_ms": statistics.median(a for a, _ in times),
    }


def decode_view(elastic: ElasticModel, view) -> float:
    messages = [{"role": "user", "content": PROMPT}]
    start, count = time.perf_counter(), 0
    for _ in stream(view, elastic.tokenizer, messages, Sampling(temperature=0.0, max_tokens=TOKENS)):
        count += 1
    return TOKENS / (time.perf_counter() - start) if count >= TOKENS else float("nan")


def decode_plain(elastic: ElasticModel, plain) -> float:
    messages = [{"role": "user", "content": PROMPT}]
    inputs = elastic.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    start = time.perf_counter()
    with torch.inference_mode():
        plain.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    return TOKENS / (time.perf_counter() - start)


def milliseconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
