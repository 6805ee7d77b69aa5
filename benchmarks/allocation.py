"""Allocated and refined plans against uniform ones of the same bytes, and what finding them takes.

    python benchmarks/allocation.py --text wiki.test.raw.txt [--seconds 600] [--resume lines.jsonl] [--out
    a.json]

Text: WikiText-2 raw, test split, its first 8,192 tokens in windows of 512; the reference is full precision in
float32, and so is everything measured. Nothing is chosen on that text: plans are allocated from the
sensitivity table and refined on `--search-text`. A budget of b bits has the bytes of the uniform plan of b
bits with untouched embeddings, linear between neighbouring widths; plans may spend them on embeddings too.
"kl_uniform" is read off uniform plans with untouched embeddings, log KL linear in bytes, and "kl_uniform_any"
(and, as before, "kl_uniform_any_embeddings") off the front of all combinations of a width for the layers and
one for the embeddings; "kl_uniform_graded" the same with graded widths of the embeddings, which are no
uniform plans (quept.numerics.graded), so that what the layers' bits gain by themselves can be told.

The rank correlation (Spearman's) is that of predicted and measured KL over random mixed plans, of mean
widths from 2.5 to 7.5 and every width of the embeddings; "within_thirds" is the mean of that of the
smallest, middle and largest third, where size says less. `--ray` times a small sensitivity job on two Ray
workers, one thread each, against one process with two threads; `--measure-sensitivity` times the whole
table. Prints a table, then one JSON object: {"b2.5": {"kl", "kl_uniform", "kl_uniform_any_embeddings",
"bytes", ...}, ..., "rank_correlation", "solver_ms", "sensitivity_s", "ray_ratio", "conditions"}; null stands
for what was not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from report import report

from quept import ElasticModel, PrecisionPlan
from quept.allocate import SensitivityTable
from quept.allocate.search.race import MeasurementLog
from quept.allocate.search.refine import refine
from quept.allocate.sensitivity.measure import measure_sensitivity
from quept.allocate.solve.constraints import FREE
from quept.allocate.solve.solver import allocate
from quept.allocate.solve.uniform import WHOLE_WIDTHS, uniform_at_equal_bytes
from quept.evaluate import Reference, Windows, cut, divergence, open_reference
from quept.plan import FULL
from quept.zoo import TEXTS
from quept.zoo import text as built_in_text

CONTEXT = 512
BANK = 4_000_000_000  # bytes: all widths of a 135M model, ready to be multiplied


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--text", required=True, help="wiki.test.raw.txt of WikiText-2 raw")
    add("--tokens", type=int, default=8192)
    add("--model", default="smollm2-135m")
    add("--table", help="sensitivity table (default: the one beside the artifact)")
    add("--bits", type=float, nargs="*", default=[2.5, 3, 3.5, 4], help="the budgets")
    add("--search-text", default="squad-passages", help="built-in text or a text file")
    add("--search-tokens", type=int, default=2048)
    add("--verify-tokens", type=int, default=4096, help="of the same text, after those")
    add("--seconds", type=float, default=600, help="of refinement for each budget")
    add("--trials", type=int, help="plans measured at most for each budget")
    add("--seed", type=int, default=0)
    add("--random-plans", type=int, default=50, help="for the rank correlation; 0: leave it out")
    add("--random-tokens", type=int, default=2048)
    add("--measure-sensitivity", type=int, metavar="TOKENS", help="measure the whole table, on so many")
    add("--workers", type=int, default=2, help="for --measure-sensitivity")
    add("--sensitivity-seconds", type=float, help="how long the table took, if known")
    add("--ray", action="store_true", help="time two Ray workers (needs ray)")
    add("--ray-windows", type=int, default=1, help="of a small job for that")
    add("--ray-turns", type=int, default=2, help="how often both are timed, by turns")
    add("--resume", type=Path, help="keep every figure in this file, and take them from there")
    add("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()

    elastic = ElasticModel.open(options.model, dtype=torch.float32, budget=BANK)
    table = SensitivityTable.load(options.table or elastic.origin.beside("sensitivity.json")).of(elastic)
    if table is None:
        sys.exit("the sensitivity table was measured on other weights; give the right one as --table")
    shown = opened(elastic, Path(options.text).read_text("utf-8"), options.tokens)
    whole = opened(elastic, searched_text(options), options.search_tokens + options.verify_tokens).windows
    split = options.search_tokens // CONTEXT
    search, fresh = (open_reference(elastic, Windows(ids)) for ids in (whole.ids[:split], whole.ids[split:]))
    log = MeasurementLog(options.resume, elastic)

    def kl(plan: PrecisionPlan, on: Reference = shown) -> float:
        return measured(elastic, plan, on, log)

    rows = {}
    for bits in options.bits:
        rows[f"b{bits:g}"] = row = at_budget(elastic, table, bits, search, fresh, kl, options)
        print(
            f"{bits:g} bits, {row['bytes'] / 1e6:.1f} MB: KL {row['kl']:.5f}, "
            f"allocated {row['kl_allocated']:.5f}, uniform {row['kl_uniform']:.5f} ({row['ratio']:.3f}x), "
            f"with any embeddings {row['kl_uniform_any_embeddings']:.5f} "
            f"({row['ratio_any_embeddings']:.3f}x)",
            flush=True,
        )
    found: dict[str, float | None] = {"rank_correlation": None, "rank_correlation_within_thirds": None}
    if options.random_plans:
        found |= ranks(elastic, table, kl, options)
    found["solver_ms"], found["solver_ms_slowest"] = solver_ms(elastic, table)
    found["sensitivity_s"] = options.sensitivity_seconds or table.data.get("seconds")
    if options.measure_sensitivity:
        found["sensitivity_s"] = sensitivity_seconds(elastic, options)
    found["ray_ratio"] = found["ray_same_table"] = None
    if options.ray:
        found |= ray_ratio(elastic, options)
    conditions = {
        "tokens": shown.windows.ids.numel(),
        "context": CONTEXT,
        "text": Path(options.text).name,
        "dtype": "float32",
        "table": table.conditions,
        "searched": f"{split * CONTEXT} tokens of {Path(options.search_text).name}",
        "seconds": options.seconds,
        "trials": options.trials,
        "seed": options.seed,
        "random_plans": options.random_plans,
        "random_tokens": options.random_tokens,
    }
    ratios = {f"{name} over uniform": row["ratio"] for name, row in rows.items()}
    ratios |= {f"{name} over any embeddings": row["ratio_any_embeddings"] for name, row in rows.items()}
    report("allocation", ratios | found, **conditions)
    line = json.dumps(rows | found | {"conditions": conditions})
    if options.out:
        options.out.write_text(line + "\n")
    print(line)


def at_budget(
    elastic: ElasticModel,
    table: SensitivityTable,
    bits: float,
    search: Reference,
    fresh: Reference,
    kl: Callable[[PrecisionPlan], float],
    options: argparse.Namespace,
) -> dict:
    """Allocate and refine for this budget, and measure that and the uniform plans on the shown text."""
    sizes, budget = elastic.sizes, bytes_of(elastic, bits)
    start = allocate(table, sizes, budget).plan
    trials = refine(
        elastic,
        start,
        budget,
        search,
        fresh,
        table=table,
        seconds=options.seconds,
        trials=options.trials,
        seed=options.seed,
        resume=options.resume,
    )
    for number, trial in enumerate(trials):
        if number % 20 == 0 or trial.final:
            seen = f"{trial.tried} plans, KL {trial.kl:.5f}, {trial.seconds:.0f} s"
            print(f"  {trial.stage}: {seen}", flush=True)
    mean, untouched = kl(trial.plan), uniform_at_equal_bytes(sizes, budget, kl)
    any_width = uniform_at_equal_bytes(sizes, budget, kl, embeddings=WHOLE_WIDTHS)
    graded = uniform_at_equal_bytes(sizes, budget, kl, embeddings=FREE.embeddings)
    layers = trial.plan.resolve(elastic.layers).values()
    return {
        "kl": short(mean),
        "kl_allocated": short(kl(start)),
        "kl_uniform": short(untouched.kl),
        "kl_uniform_any": short(any_width.kl),
        "kl_uniform_any_embeddings": short(any_width.kl),
        "kl_uniform_graded": short(graded.kl),
        "bytes": sizes.deploy(trial.plan),
        "budget": budget,
        "bits_per_parameter": round(sizes.bits_per_parameter(trial.plan), 4),
        "ratio": round(mean / untouched.kl, 4),
        "ratio_any_embeddings": round(mean / any_width.kl, 4),
        "ratio_graded": round(mean / graded.kl, 4),
        "uniform_neighbours": [plan.name for plan in (any_width.below, any_width.above) if plan],
        "layers": {b: sum(bits.weights == b for bits in layers) for b in FREE.widths},
        "embeddings": trial.plan.embeddings,
        "chosen": trial.chosen,
        "verified": {name: short(row["kl"]) for name, row in trial.verified.items()},
        "tried": trial.tried,
        "plan": json.loads(replace(trial.plan, name=f"best at W{bits:g}").to_json()),
    }


def bytes_of(elastic: ElasticModel, bits: float) -> int:
    """Those of the uniform plan with untouched embeddings; between two widths, linear."""
    low = int(bits)
    sizes = [elastic.sizes.deploy(PrecisionPlan.uniform(b)) for b in (low, low + (bits > low))]
    return int(sizes[0] + (bits - low) * (sizes[1] - sizes[0]))


def ranks(elastic: ElasticModel, table: SensitivityTable, kl: Callable, options: argparse.Namespace) -> dict:
    """Spearman's correlation of predicted and measured KL over random plans, on the first windows of the
    shown text."""
    on = opened(elastic, Path(options.text).read_text("utf-8"), options.random_tokens)
    rng, rows = random.Random(options.seed), []
    for _ in range(options.random_plans):
        mean, spread = rng.uniform(2.5, 7.5), rng.uniform(0.3, 1.2)
        widths = {name: min(8, max(2, round(rng.gauss(mean, spread)))) for name in elastic.layers}
        embeddings = rng.choice([e for e in FREE.embeddings if e == FULL or e in table.embeddings])
        plan = PrecisionPlan.of(widths, embeddings=embeddings)
        rows.append((elastic.sizes.deploy(plan), table.predicted(plan)["kl"], kl(plan, on)))
    rows.sort()
    thirds = [rows[i * len(rows) // 3 : (i + 1) * len(rows) // 3] for i in range(3)]
    within = [spearman(*zip(*part, strict=True)) for part in ([r[1:] for r in third] for third in thirds)]
    return {
        "rank_correlation": round(spearman(*zip(*[r[1:] for r in rows], strict=True)), 4),
        "rank_correlation_within_thirds": round(statistics.mean(within), 4),
    }


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    places = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*places)[0, 1])


def solver_ms(elastic: ElasticModel, table: SensitivityTable) -> tuple[float, float]:
    """Median and slowest of allocating at 25 budgets between the smallest plan and full precision."""
    low, high = bytes_of(elastic, 2), elastic.sizes.deploy(PrecisionPlan.full())
    times = []
    for i in range(25):
        began = time.perf_counter()
        allocate(table, elastic.sizes, low + i * (high - low) // 24)
        times.append(1e3 * (time.perf_counter() - began))
    return round(statistics.median(times), 2), round(max(times), 2)


def sensitivity_seconds(elastic: ElasticModel, options: argparse.Namespace) -> float:
    """Wall time of the whole table: every layer and the embeddings at every width, and whole uniform plans
    on 4,096 tokens."""
    windows = opened(elastic, searched_text(options), options.measure_sensitivity).windows
    curve = opened(elastic, searched_text(options), 4096)
    began = time.perf_counter()
    measure_sensitivity(elastic, windows, curve, source=options.model, workers=options.workers)
    return round(time.perf_counter() - began, 1)


def ray_ratio(elastic: ElasticModel, options: argparse.Namespace) -> dict:
    """Every block at three widths: wall time of two Ray workers with one thread each over that of this
    process on the same cores, with two threads, or one where it may use one core only (`taskset -c 0`): then
    nothing but the overhead of sharing out is left, also beside busy neighbours, who slow two threads that
    wait for each other much more than two workers that do not.

    The workers' start and their opening of the model count, the cluster's start does not. The two take turns,
    since a machine is not equally fast at all times; the median of the ratios counts. The tables must be that
    of one process with one thread. Ray would run its workers at a lower priority than this process, which on
    a shared machine measures the neighbours: here both have the same."""
    import ray

    data = opened(elastic, searched_text(options), options.ray_windows * CONTEXT)
    curve = open_reference(elastic, Windows(data.windows.ids[:1]))

    def table(**how) -> tuple[float, SensitivityTable]:
        began = time.perf_counter()
        made = measure_sensitivity(
            elastic, data.windows, curve, (2, 4, 8), "block", source=options.model, **how
        )
        return time.perf_counter() - began, made

    one_thread, single = table(threads=1)  # makes the reference and the weights of uniform plans, too
    print(f"one process, one thread: {one_thread:.1f} s", flush=True)
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112, as Ray spells it
    began = time.perf_counter()
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    start = time.perf_counter() - began
    serial, shared, same, threads = [], [], True, min(2, len(os.sched_getaffinity(0)))
    for turn in range(options.ray_turns):
        serial.append(table(threads=threads)[0])
        seconds, made = table(workers=2, threads=1, executor="ray")
        shared.append(seconds)
        same = same and made == single
        print(f"turn {turn + 1}: one process {serial[-1]:.1f} s, two Ray workers {seconds:.1f} s", flush=True)
    ray.shutdown()
    if not same:
        sys.exit("the Ray workers' table differs from that of one process")
    return {
        "ray_ratio": round(statistics.median(r / s for r, s in zip(shared, serial, strict=True)), 3),
        "ray_seconds": [round(x, 1) for x in shared],
        "serial_seconds": [round(x, 1) for x in serial],
        "one_thread_seconds": round(one_thread, 1),
        "serial_threads": threads,
        "ray_start_seconds": round(start, 1),
        "ray_same_table": same,
    }


def measured(elastic: ElasticModel, plan: PrecisionPlan, on: Reference, log: MeasurementLog) -> float:
    key = plan.key(elastic.layers), on.windows.id
    if key not in log.estimates:
        *_, last = divergence(elastic.view(plan), on, on.windows)
        log.add({"plan": key[0], "windows": key[1], "estimate": last.to_dict()})
    return log.estimates[key]["kl"]


def searched_text(options: argparse.Namespace) -> str:
    name = options.search_text
    return built_in_text(name) if name in TEXTS else Path(name).read_text("utf-8")


def opened(elastic: ElasticModel, text: str, tokens: int) -> Reference:
    return open_reference(elastic, cut(text, elastic.tokenizer, CONTEXT, tokens))


def short(x: float) -> float:
    return float(f"{x:.6g}")


if __name__ == "__main__":
    main()
