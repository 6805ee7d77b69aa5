"""Nested codes read at every depth and routed by token, beside the best static map of depths, uniform
interpolation and round-to-nearest.

    python benchmarks/mobiquant.py --text wiki.test.raw.txt [--tokens 8192] [--out mobiquant.json]

Text: WikiText-2 raw, test split, its first tokens in windows of 512; everything in float32. At an average of
b bits: `kl` routed by token; `kl_static` the better of two maps of a depth for each layer with no more bits,
the solver's on a measured table where one lies beside the artifact, and the routers' own with every token
taken for the mean of a text (what is left is the tokens' share); `kl_uniform` a share of all tokens at the
next uniform depth below b and the rest at the one above. Prints a table, then one JSON object:
{"depth": {"2": {"kl", "kl_nested_rtn", "kl_rtn"}, ...}, "routed": {"2.5": {"kl", "kl_static", "kl_uniform",
"bits"}, ...}, "switch_ms", "calibration_s", "decode": {...}, "bytes": {...}, "conditions": {...}}.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from quality import calibration_seconds
from report import report
from switching import milliseconds
from torch import LongTensor

from quept import ElasticModel, PrecisionPlan, load
from quept.allocate import SensitivityTable
from quept.allocate.solve.constraints import Constraints
from quept.allocate.solve.solver import allocate
from quept.artifact import Artifact, resolve_source
from quept.calibrate.routers import scores_of, static_map
from quept.engines.reports import Reports
from quept.evaluate import Reference, Windows, cut, divergence, open_reference
from quept.numerics.nested import DEPTHS
from quept.runtime import Sampling

AVERAGES = (2.5, 3.0, 4.0, 5.0)
PROMPT = "Describe, step by step, how a bill becomes a law."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", required=True, help="wiki.test.raw.txt of WikiText-2 raw")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--model", default="smollm2-135m:mobiquant", metavar="ARTIFACT")
    parser.add_argument("--answer", type=int, default=48, help="tokens that are decoded for the rates")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()

    base = load(resolve_source(options.model).base)
    elastic = ElasticModel.open(options.model, base=base, dtype=torch.float32)
    rtn, plain = (
        ElasticModel(base, Artifact.unlearned(method, base, elastic.artifact.group), dtype=torch.float32)
        for method in ("rtn", "mobiquant")
    )
    windows = cut(Path(options.text).read_text("utf-8"), rtn.tokenizer, context=512, tokens=options.tokens)
    reference = open_reference(rtn, windows)

    def kl(model: ElasticModel, plan: PrecisionPlan) -> float:
        return measured(model, plan, windows, reference)[0]

    depth = {}
    for bits in DEPTHS:
        plan = PrecisionPlan.uniform(bits)
        depth[str(bits)] = {
            "kl": kl(elastic, plan),
            "kl_nested_rtn": kl(plain, plan),
            "kl_rtn": kl(rtn, plan),
        }
        print(f"depth {bits}: " + ", ".join(f"{name} {x:.5f}" for name, x in depth[str(bits)].items()))
    routed = {}
    for average in AVERAGES:
        found, bits = measured(elastic, PrecisionPlan.uniform(f"routed:{average:g}"), windows, reference)
        maps = static_maps(elastic, average, windows)
        row = {"kl": found, "bits": bits}
        row |= {f"kl_static_{name}": kl(elastic, plan) for name, plan in maps.items()}
        row["kl_static"] = min(x for name, x in row.items() if name.startswith("kl_static_"))
        row["kl_uniform"] = between(average, {int(b): r["kl"] for b, r in depth.items()})
        routed[f"{average:g}"] = row
        print(f"{average:g} bits: " + ", ".join(f"{name} {x:.5f}" for name, x in row.items()))
    result = {
        "depth": depth,
        "routed": routed,
        "switch_ms": switch_ms(elastic),
        "calibration_s": sum(calibration_seconds(elastic.origin.artifact).values()),
        "decode": decode(elastic, options.answer),
        "bytes": {"kept": elastic.sizes.deploy(PrecisionPlan.uniform("routed:4"))}
        | {f"read_{b}": elastic.sizes.deploy(PrecisionPlan.uniform(b)) for b in DEPTHS},
    }
    conditions = {"tokens": options.tokens, "context": 512, "text": Path(options.text).name}
    report("Routed by token", {"switch_ms": result["switch_ms"]} | result["decode"], **conditions)
    line = json.dumps(result | {"conditions": conditions | {"dtype": "float32"}})
    if options.out:
        options.out.write_text(line + "\n")
    print(line)


def measured(
    elastic: ElasticModel, plan: PrecisionPlan, windows: Windows, reference: Reference
) -> tuple[float, float]:
    """Mean KL, and bits a token."""
    heard = Reports()
    with heard.listen():
        *_, last = divergence(elastic.view(plan), reference, windows)
    return float(f"{last.kl:.6g}"), round(heard.means().get("bits per token", 16.0), 4)


def static_maps(elastic: ElasticModel, average: float, windows: Windows) -> dict[str, PrecisionPlan]:
    """Maps of a depth for each layer with this many bits on average."""
    budget = sum(elastic.sizes.weights.values()) * average
    maps = {"routers": map_of_routers(elastic, average, windows.ids[:4])}
    path = elastic.origin.beside("sensitivity.json")
    if table := path and SensitivityTable.load(path).of(elastic):
        bits = {n: {b: n_weights * b for b in DEPTHS} for n, n_weights in elastic.sizes.weights.items()}
        sizes = replace(elastic.sizes, layers=bits, embeddings={16: 0}, fixed=0)
        within = Constraints(widths=DEPTHS, embeddings=(16,))
        maps["solver"] = allocate(table, sizes, int(budget), within).plan
    return maps


def map_of_routers(elastic: ElasticModel, average: float, ids: LongTensor) -> PrecisionPlan:
    """Layer by layer the depth that routers give the mean token of these windows."""
    routes, view = elastic.artifact.engine.routes, elastic.view(PrecisionPlan.uniform(4))
    scores = scores_of(view, routes.routers, ids, elastic.device)
    return PrecisionPlan.of(static_map(average, scores, routes.leaders, elastic.sizes.weights), name="map")


def between(average: float, kl: Mapping[int, float]) -> float:
    """KL where a share of all tokens is at the next depth below and the rest at the one above."""
    low = max(b for b in DEPTHS if b <= average)
    high = min(b for b in DEPTHS if b >= average)
    share = (average - low) / (high - low) if high > low else 0.0
    return float(f"{(1 - share) * kl[low] + share * kl[high]:.6g}")


def switch_ms(elastic: ElasticModel) -> float:
    """Median milliseconds from one average to another, all known to the bank."""
    plans = [PrecisionPlan.uniform(f"routed:{average:g}") for average in AVERAGES]
    for plan in plans:
        elastic.view(plan)
    gc.collect()
    gc.freeze()  # as the app does once it has loaded
    return round(statistics.median(milliseconds(lambda p=p: elastic.view(p)) for p in plans * 5), 3)


def decode(elastic: ElasticModel, tokens: int) -> dict[str, float]:
    """Tokens a second at an average of 3 bits and at 4 bits, taken in turns; the better of three. With the
    16-bit head, of which every token reads all, and with one of 4 bits."""
    found: dict[str, float] = {}
    plans = {name: PrecisionPlan.parse(name) for name in ("routed:3", "W4")}
    plans |= {f"{name}E4": replace(plan, embeddings=4) for name, plan in plans.items()}
    for _ in range(3):
        for name, plan in plans.items():
            stream = elastic.stream(plan, PROMPT, Sampling(temperature=0, max_tokens=tokens))
            for _ in stream:
                pass
            found[name] = max(found.get(name, 0.0), stream.stats.tokens_per_second)
    return {f"tokens_per_s_{name}": round(rate, 2) for name, rate in found.items()}


if __name__ == "__main__":
    main()
