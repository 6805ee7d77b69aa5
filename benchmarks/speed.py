"""Tokens a second of the packed path against llama.cpp and transformers, in turns in one run.

    python benchmarks/speed.py [--model smollm2-135m] [--repeats 5] [--threads 2] [--tokens 64]
    python benchmarks/speed.py --device cuda         # products alone, on an NVIDIA GPU: see speed_cuda.py

Every figure is a median over `repeats` rounds; in a round each contestant runs once, so that a busy
moment of the machine meets all of them. Decoding is greedy, `tokens` of them after a prompt of 32; W4E4
is 4 bits in every layer and in the embeddings. Speeds are of *fast* products, which round their inputs
to 8 bits as llama.cpp does; `max_rel` is of exact ones, against dense products of float32, and `kl_fast`
what the rounding costs at w4, in nats a token of random text. llama.cpp runs the files that `quept
export --to gguf` writes, with as many threads, and counts its own tokens; without the package xllamacpp
its ratios are missing. Ratios are of tokens a second (above 1: faster), but for `prompt_ratio`, which is
packed time over dense time. `of_limit`: the speed, as a share of memory bandwidth over the plan's bytes.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

CONTEXT = 32  # tokens before the first that is timed
PROMPT = 512
WIDTHS = (2, 3, 4, 5, 6, 7, 8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    if options.device == "cuda":
        import speed_cuda  # beside this file; it needs none of quept's other requirements

        speed_cuda.main(options.repeats)
    else:
        torch.set_num_threads(options.threads)
        measure(options.model, options.repeats, options.tokens)


def measure(model: str, repeats: int, tokens: int) -> None:
    """Prints the figures of one model on this machine's CPU."""
    import psutil
    from report import report

    from quept import ElasticModel, kernels

    if why := kernels.missing():
        raise SystemExit(why)
    elastic = ElasticModel.open(model, dtype=torch.float32)
    plans = plans_of(elastic)
    views = {name: elastic.view(plan) for name, plan in plans.items()}
    with ExitStack() as stack:
        runs = {name: decoding(view, tokens) for name, view in views.items()}
        runs["generate"] = generating(elastic.full_precision(), tokens)
        runs |= llama_cpp(elastic, {name: plans[name] for name in ("w4", "w8")}, tokens, stack)
        gc.collect()
        gc.freeze()  # as the app does once it has loaded
        speeds = in_turns(runs, repeats)
    del runs
    weighs = {name: elastic.sizes.deploy(plan) for name, plan in plans.items()}
    bandwidth = memory_bandwidth()
    figures = {
        "w4_vs_llama_cpp": ratio(speeds, "w4", "llama.cpp w4"),
        "w8_vs_llama_cpp": ratio(speeds, "w8", "llama.cpp w8"),
        "w2_vs_w4": ratio(speeds, "w2", "w4"),
        "w3_vs_w4": ratio(speeds, "w3", "w4"),
        "mixed_vs_uniform": speeds["mixed"] / of_equal_bytes(speeds, weighs, "mixed"),
        "w4_vs_generate": ratio(speeds, "w4", "generate"),
        "prompt_ratio": prompt_ratio(elastic, plans["w4"], repeats),
        "max_rel": max(worst_difference(view) for view in views.values()),
        "kl_fast": kl_of_fast(views["w4"]),
        "switch_known_ms": switching(elastic, plans["w3"], plans["w4"], repeats),
        "resident_gb": psutil.Process().memory_info().rss / 1e9,
        "of_limit": {name: speeds[name] * weighs[name] / bandwidth for name in ("w2", "w4", "w8")},
    }
    about = {"instructions": kernels.loaded().level, "bandwidth_gb_s": bandwidth / 1e9}
    rounded = {name: round(speed, 1) for name, speed in speeds.items()}
    report(
        "Packed weights",
        figures,
        model=model,
        tokens=tokens,
        repeats=repeats,
        tokens_per_second=rounded,
        **about,
    )


def plans_of(elastic) -> dict:
    """Every uniform width, with embeddings at 4 bits (8 at 8), and a random mixture with embeddings at 4."""
    from quept import PrecisionPlan

    plans = {f"w{bits}": PrecisionPlan.uniform(bits, embeddings=8 if bits == 8 else 4) for bits in WIDTHS}
    drawn = random.Random(0)
    widths = {layer: drawn.choice(WIDTHS) for layer in elastic.layers}
    return plans | {"mixed": PrecisionPlan.of(widths, 4, embeddings=4)}


def decoding(view, tokens: int) -> Callable[[], float]:
    """A run of our own: greedy, one call of C a token, a cache filled by the view."""
    from quept.runtime.decode import OneToken, decoder_of
    from quept.runtime.kvcache import make_cache

    decoder, ids = decoder_of(view, fast=True), prompt(view, CONTEXT)
    if decoder is None:
        raise SystemExit(f"C does not decode a {view.config.model_type} model: choose a Llama-like one")

    @torch.inference_mode()
    def run() -> float:
        cache, one = make_cache(view.config), OneToken(decoder)
        token = int(view(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())
        began = time.perf_counter()
        for i in range(tokens):
            token = int(one(cache, token, CONTEXT + i).argmax())
        return tokens / (time.perf_counter() - began)

    return run


def generating(model, tokens: int) -> Callable[[], float]:
    """A run of transformers' generate in float32: what more tokens take than one."""
    ids = prompt(model, CONTEXT)

    def seconds(count: int) -> float:
        began = time.perf_counter()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        return time.perf_counter() - began

    return lambda: tokens / (seconds(tokens + 1) - seconds(1))


def llama_cpp(elastic, plans: dict, tokens: int, stack: ExitStack) -> dict[str, Callable[[], float]]:
    """Runs of llama.cpp on the same plans as GGUF files; none without the package."""
    from quept.export import exporter
    from quept.export.gguf.llama_cpp import LlamaCpp, missing

    if why := missing():
        print(f"Without llama.cpp: {why}")
        return {}
    folder, runs = Path(stack.enter_context(tempfile.TemporaryDirectory())), {}
    for name, plan in plans.items():
        target, path = exporter("gguf"), folder / f"{name}.gguf"
        target.write(elastic, target.nearest(elastic, plan), path)
        llama = stack.enter_context(LlamaCpp(path))
        runs[f"llama.cpp {name}"] = lambda llama=llama: llama.speed(CONTEXT, tokens).write
    return runs


def in_turns(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median of each, after a round that does not count; every round begins one further on, since it
    matters what ran before."""
    found, names = {name: [] for name in runs}, list(runs)
    for i in range(repeats + 1):
        start = i % len(names)
        for name in names[start:] + names[:start]:
            speed = runs[name]()
            if i:
                found[name].append(speed)
    return {name: statistics.median(speeds) for name, speeds in found.items()}


def ratio(speeds: dict[str, float], one: str, other: str) -> float | None:
    return speeds[one] / speeds[other] if other in speeds else None


def of_equal_bytes(speeds: dict[str, float], weighs: dict[str, int], name: str) -> float:
    """The speed of a uniform plan of these bytes: the time of a token, between the two uniform widths around
    them that share their embeddings' width."""
    uniform = sorted((weighs[f"w{bits}"], 1 / speeds[f"w{bits}"]) for bits in WIDTHS if bits != 8)
    for (lighter, quick), (heavier, slow) in itertools.pairwise(uniform):
        if lighter <= weighs[name] <= heavier:
            return 1 / (quick + (slow - quick) * (weighs[name] - lighter) / (heavier - lighter))
    raise SystemExit("the mixture is lighter or heavier than every uniform width")


@torch.inference_mode()
def prompt_ratio(elastic, plan, repeats: int) -> float:
    """Time of a prompt at packed weights over that at dense ones, both in the dtype that this machine
    multiplies fastest in."""
    from quept import ElasticModel

    fastest = ElasticModel.open(elastic.origin.artifact or elastic.origin.base)
    dense = fastest.with_weights({layer: fastest.values(layer, 4) for layer in fastest.layers})
    views = {"packed": fastest.view(plan), "dense": dense}

    def run(view) -> float:
        ids = prompt(view, min(PROMPT, view.config.max_position_embeddings))
        began = time.perf_counter()
        view(input_ids=ids, use_cache=False, logits_to_keep=1)
        return time.perf_counter() - began

    seconds = in_turns({name: lambda view=view: run(view) for name, view in views.items()}, repeats)
    return seconds["packed"] / seconds["dense"]


@torch.inference_mode()
def worst_difference(view) -> float:
    """The largest relative difference of exact logits, token by token, from those of one pass over the text,
    which multiplies dense."""
    expected = view(input_ids=prompt(view, CONTEXT)).logits[0, CONTEXT // 2 :].float()
    return float((one_by_one(view) - expected).abs().max() / expected.abs().max())


def kl_of_fast(view) -> float:
    """KL of exact to fast logits, in nats a token."""
    exact, fast = (one_by_one(view, mode).double().log_softmax(-1) for mode in (False, True))
    return float((exact.exp() * (exact - fast)).sum(-1).mean())


@torch.inference_mode()
def one_by_one(view, fast: bool = False) -> torch.Tensor:
    """Logits (CONTEXT / 2, vocabulary) of the second half of the prompt, a call of C a token."""
    from quept.runtime.decode import OneToken, decoder_of
    from quept.runtime.kvcache import make_cache

    ids, cache, half = prompt(view, CONTEXT), make_cache(view.config), CONTEXT // 2
    one = OneToken(decoder_of(view, fast))
    view(input_ids=ids[:, :half], cache=cache, use_cache=True)
    return torch.stack([one(cache, int(ids[0, i]), i) for i in range(half, CONTEXT)])


def switching(elastic, one, other, repeats: int) -> float:
    """Median milliseconds from asking for a plan whose widths are known to having its view."""
    times = []
    for i in range(2 * repeats + 2):
        began = time.perf_counter()
        elastic.view((one, other)[i % 2])
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times[2:])


def memory_bandwidth() -> float:
    """Bytes a second that torch's threads read in a sum, the best of ten."""
    numbers, times = torch.ones(64_000_000), []
    for _ in range(10):
        began = time.perf_counter()
        numbers.sum()
        times.append(time.perf_counter() - began)
    return numbers.nbytes / min(times)


def prompt(view, tokens: int) -> torch.Tensor:
    """Token ids (1, tokens), the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(view.config.vocab_size // 2, (1, tokens), generator=generator)


if __name__ == "__main__":
    main()
