"""`quept evaluate`: perplexity, divergence and size of plans and baselines."""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quept.plan import FULL, PrecisionPlan
from quept.progress import Progress

from .shared import (
    DEFAULT_MODEL,
    PLAN_HELP,
    command,
    dtype_of,
    json_option,
    model_options,
    name_of,
    opened,
    plan_of,
    print_json,
    print_table,
    short,
    text_options,
    windows_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

    from quept.evaluate import ResultKey, Windows
    from quept.runtime import ElasticModel


def evaluate_parser(commands) -> None:
    p = command(
        commands,
        "evaluate",
        _evaluate,
        "measure perplexity, divergence from full precision and size of one or more plans",
        f"quept evaluate {DEFAULT_MODEL} --plan W4 --plan protect-edges --json",
    )
    model_options(p)
    p.add_argument(
        "--plan", action="append", metavar="PLAN", help=f"{PLAN_HELP}; repeat for several (default: W4)"
    )
    p.add_argument(
        "--presets", action="store_true", help="also full, W8 ... W2 and every named plan that fits the model"
    )
    p.add_argument(
        "--baseline",
        action="append",
        metavar="NAME",
        default=[],
        help="another tool's quantisation of the same model: nf4 or int8 of bitsandbytes; repeat for several",
    )
    text_options(p, tokens=4096)
    p.add_argument("--again", action="store_true", help="measure even what the results store holds already")
    p.add_argument(
        "--export-results",
        metavar="FILE",
        help="also write the results to a file that the app reads at its start",
    )
    json_option(p)


def _evaluate(options: argparse.Namespace) -> None:
    from quept import zoo
    from quept.evaluate import Reference, Results

    with Progress() as progress:
        elastic = opened(options, progress)
        plans = _plans(options, elastic)
        windows = windows_of(options, elastic, options.tokens, progress)
        cache = zoo.cache_dir()
        results = Results.open(cache / "results.sqlite")
        reference = Reference.open(elastic.fingerprint, windows, elastic.reference, cache / "reference")
        subjects = [_plan_subject(elastic, plan, windows) for plan in plans]
        subjects += [_baseline_subject(elastic, name, windows) for name in options.baseline]
        measured = [
            _measured(elastic, subject, windows, reference, results, options.again, progress)
            for subject in subjects
        ]
    conditions = _conditions(options, elastic, windows)
    if not plans:
        conditions = {k: v for k, v in conditions.items() if k not in ("method", "group")}  # those of ours
    if options.baseline:
        conditions["bitsandbytes"] = importlib.metadata.version("bitsandbytes")
    print(_sentence(conditions))
    print_table(
        ("plan", "bits/param", "MB", "perplexity", "KL", "same top"),
        [(m.subject.name or "plan", *_figures(m)) for m in measured],
    )
    if options.export_results:
        from quept.evaluate.shipped import write_shipped

        rows = [(m.subject.name, m.subject.key, m.estimate) for m in measured]
        write_shipped(options.export_results, rows, **conditions)
    if options.json:
        print_json(conditions | {"results": [m.as_dict() for m in measured]})


@dataclass(frozen=True)
class Subject:
    """What is measured: a plan or a baseline, its size, and how to get its view and its KV cache."""

    name: str
    key: ResultKey
    deploy_bytes: int
    view: Callable[[], PreTrainedModel]
    make_cache: Callable[[], Cache] | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured of a subject (an Estimate as a dict)."""

    subject: Subject
    bits_per_parameter: float
    estimate: dict[str, float]

    def as_dict(self) -> dict:
        subject = self.subject
        sizes = {
            "deploy_bytes": subject.deploy_bytes,
            "bits_per_parameter": round(self.bits_per_parameter, 4),
        }
        return {"plan": subject.name, "key": subject.key.plan} | sizes | self.estimate


def _plan_subject(elastic: ElasticModel, plan: PrecisionPlan, windows: Windows) -> Subject:
    from quept.evaluate import ResultKey

    key = ResultKey(plan.key(elastic.layers), elastic.artifact.identity, windows.id, dtype_of(elastic))
    cache = None if plan.kv == FULL else lambda: elastic.make_cache(plan)
    return Subject(plan.name, key, elastic.sizes.deploy(plan), lambda: elastic.view(plan), cache)


def _baseline_subject(elastic: ElasticModel, name: str, windows: Windows) -> Subject:
    """Its key names the base weights: how ours are quantised does not matter to it."""
    from quept.evaluate import ResultKey
    from quept.runtime.baselines import baseline_named, check_available

    baseline = baseline_named(name)
    check_available(baseline)
    key = ResultKey(baseline.key, elastic.fingerprint, windows.id, dtype_of(elastic))
    return Subject(baseline.title, key, elastic.baseline_bytes(name), lambda: elastic.baseline(name))


def _measured(
    elastic, subject: Subject, windows, reference, results, again: bool, progress: Progress
) -> Measured:
    """From the results store where it is there, else measured now and stored."""
    from quept.evaluate import divergence

    stored = None if again else results.get(subject.key)
    if stored:
        estimate = stored.payload
    else:
        progress(f"{subject.name}: preparing the weights", 0.0)
        for running in divergence(subject.view(), reference, windows, make_cache=subject.make_cache):
            progress(
                f"{subject.name}: perplexity {running.ppl:.1f}, KL {running.kl:.4f}",
                running.tokens / windows.scored,
            )
            estimate = running.to_dict()
        results.put(subject.key, estimate)
    return Measured(subject, 8 * subject.deploy_bytes / elastic.sizes.parameters, estimate)


def _figures(m: Measured) -> tuple[str, ...]:
    e = m.estimate
    return (
        f"{m.bits_per_parameter:.2f}",
        f"{m.subject.deploy_bytes / 1e6:.1f}",
        f"{short(e['ppl'])} ± {short(e['ppl_se'])}",
        f"{short(e['kl'])} ± {short(e['kl_se'])}",
        f"{100 * e['same_top']:.1f} ± {100 * e['same_top_se']:.1f} %",
    )


def _plans(options: argparse.Namespace, elastic: ElasticModel) -> list[PrecisionPlan]:
    from quept.plan import QUANTISED_BITS
    from quept.presets import presets

    others = options.presets or options.baseline
    plans = [plan_of(text, elastic) for text in options.plan or ([] if others else ["W4"])]
    if options.presets:
        plans += [PrecisionPlan.full(), *(PrecisionPlan.uniform(bits) for bits in reversed(QUANTISED_BITS))]
        plans += presets(name_of(elastic.source), elastic.layers)
    return list({plan.key(elastic.layers): plan for plan in plans}.values())


def _conditions(options: argparse.Namespace, elastic: ElasticModel, windows: Windows) -> dict:
    return {
        "name": name_of(options.model),
        "title": elastic.title,
        "method": elastic.artifact.manifest.method,
        "group": elastic.artifact.group,
        "text": name_of(options.text),
        "tokens": windows.ids.numel(),
        "context": windows.context,
        "device": elastic.device.type,
        "dtype": dtype_of(elastic),
    }


def _sentence(c: dict) -> str:
    ours = f"{c['method']}, group {c['group']}, " if "method" in c else ""
    return (
        f"{c['title']}, {ours}on {c['tokens']:,} tokens of {c['text']}, "
        f"context {c['context']}, {c['dtype']} on {c['device']}"
    )
