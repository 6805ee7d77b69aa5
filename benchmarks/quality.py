"""Divergence and perplexity of the calibrated artifacts at every width, beside round-to-nearest on the same
grid.

    python benchmarks/quality.py --text wiki.test.raw.txt [--tokens 8192] [--out quality.json]

Text: WikiText-2 raw, test split, its first 8,192 tokens in windows of 512; the reference is full precision in
float32, and so is everything measured. "rtn" rounds the untransformed weights to nearest on the same groups;
for W4A4 and the like its inputs are rounded per token as well. Prints a table, then one JSON object:
{"w2": {"kl", "kl_se", "kl_rtn", "ppl", "ppl_rtn", "ratio"}, ..., "w4a4": {...}, "artifact_mb": {...},
"calibration_s": {...}, "conditions": {...}}.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from report import report

from quept import ElasticModel, PrecisionPlan
from quept.artifact import resolve_source
from quept.evaluate import Estimate, Reference, Windows, cut, divergence, open_reference

WEIGHTS = ("W2", "W3", "W4", "W5", "W6", "W7", "W8")
WITH_ACTIVATIONS = ("W4A4", "W5A5", "W6A6", "W7A7", "W8A8", "W4A8")
MIXED = {  # patterns of layers, so that mixtures are held to the same standard as uniform plans
    "mixed-2468": PrecisionPlan.of(
        {"*.q_proj": 2, "*.k_proj": 6, "*.v_proj": 8, "*.o_proj": 4, "*.gate_proj": 3, "*.up_proj": 3},
        default=6,
    ),
    "mixed-34": PrecisionPlan.of({"*.layers.*[02468].*": 3}, default=4),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", required=True, help="wiki.test.raw.txt of WikiText-2 raw")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--weight-only", default="smollm2-135m:weight-only", metavar="ARTIFACT")
    parser.add_argument("--weight-act", default="smollm2-135m:weight-act", metavar="ARTIFACT")
    parser.add_argument("--only", choices=("weight-only", "weight-act"), help="one of the two")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()

    rtn = open_float32(options.model if Path(options.model).is_dir() else f"{options.model}:rtn")
    windows = cut(Path(options.text).read_text("utf-8"), rtn.tokenizer, context=512, tokens=options.tokens)
    reference = open_reference(rtn, windows)
    uniform = {name: PrecisionPlan.parse(name) for name in (*WEIGHTS, *WITH_ACTIVATIONS)}
    rows, sizes, seconds = {}, {}, {}
    for kind, source, names in (
        ("weight-only", options.weight_only, (*WEIGHTS, *MIXED)),
        ("weight-act", options.weight_act, WITH_ACTIVATIONS),
    ):
        if options.only not in (None, kind):
            continue
        calibrated = open_float32(source)
        sizes[kind] = round(calibrated.artifact.nbytes / 1e6, 2)
        seconds[kind] = calibration_seconds(resolve_source(source).artifact)
        for name in names:
            plan = (uniform | MIXED)[name]
            ours, plain = (measure(e, plan, windows, reference) for e in (calibrated, rtn))
            rows[name.lower()] = row(ours, plain)
            print(
                f"{name:<11} KL {ours.kl:.5f} ± {ours.kl_se:.5f}, "
                f"rtn {plain.kl:.5f}: {ours.kl / plain.kl:.3f}x"
            )
        del calibrated
    figures = {name: r["ratio"] for name, r in rows.items()} | {f"{k}_mb": s for k, s in sizes.items()}
    conditions = {
        "tokens": options.tokens,
        "context": 512,
        "text": Path(options.text).name,
        "dtype": "float32",
    }
    report("KL against round-to-nearest (ratio)", figures, **conditions)
    line = json.dumps(rows | {"artifact_mb": sizes, "calibration_s": seconds, "conditions": conditions})
    if options.out:
        options.out.write_text(line + "\n")
    print(line)


def open_float32(source: str) -> ElasticModel:
    return ElasticModel.open(source, dtype=torch.float32)


def calibration_seconds(folder: Path) -> dict[str, float]:
    """Wall time of every stage, as the run wrote it beside the artifact."""
    lines = map(json.loads, (folder / "progress.jsonl").read_text("utf-8").splitlines())
    return next((line["seconds_per_stage"] for line in lines if line["what"] == "done"), {})


def measure(elastic: ElasticModel, plan: PrecisionPlan, windows: Windows, reference: Reference) -> Estimate:
    *_, last = divergence(elastic.view(plan), reference, windows)
    return last


def row(ours: Estimate, plain: Estimate) -> dict[str, float]:
    figures = {"kl": ours.kl, "kl_se": ours.kl_se, "kl_rtn": plain.kl, "ppl": ours.ppl, "ppl_rtn": plain.ppl}
    return {k: float(f"{v:.6g}") for k, v in figures.items()} | {"ratio": round(ours.kl / plain.kl, 4)}


if __name__ == "__main__":
    main()
