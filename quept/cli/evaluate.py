"""`quept evaluate`: perplexity or accuracy, divergence and size of plans and baselines."""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quept.files import dtype_name
from quept.plan import FULL, PrecisionPlan
from quept.progress import Progress

from .measures import Measure, data_options, measure_of
from .shared import (
    DEFAULT_MODEL,
    PLAN_HELP,
    command,
    json_option,
    model_options,
    name_of,
    opened,
    plan_of,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers.cache_utils import Cache

    from quept.evaluate import ResultKey, Results
    from quept.runtime import ElasticModel


def evaluate_parser(commands) -> None:
    p = command(
        commands,
        "evaluate",
        _evaluate,
        "measure perplexity or accuracy, divergence from full precision and size of one or more plans",
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
        help="another tool's quantization of the same model: nf4 or int8 of bitsandbytes; repeat for several",
    )
    data_options(p)
    p.add_argument("--again", action="store_true", help="measure even what the results store holds already")
    p.add_argument(
        "--export-results",
        metavar="FILE",
        help="also write the results to a file that the app reads at its start",
    )
    json_option(p)


def _evaluate(options: argparse.Namespace) -> None:
    from quept import zoo
    from quept.evaluate import Results

    with Progress() as progress:
        elastic = opened(options, progress)
        plans = _plans(options, elastic)
        measure = measure_of(options, elastic, progress)
        results = Results.open(zoo.cache_dir() / "results.sqlite")
        subjects = [_plan_subject(elastic, plan, measure) for plan in plans]
        subjects += [_baseline_subject(elastic, name, measure) for name in options.baseline]
        measured = [
            _measured(elastic, subject, measure, results, options.again, progress) for subject in subjects
        ]
    conditions = _conditions(options, elastic, measure)
    if not plans:
        conditions = {k: v for k, v in conditions.items() if k not in ("method", "group")}  # those of ours
    if options.baseline:
        conditions["bitsandbytes"] = importlib.metadata.version("bitsandbytes")
    print(_sentence(conditions, measure))
    print_table(
        ("plan", "bits/param", "MB", *measure.head),
        [(m.subject.name or "plan", *m.sizes, *measure.figures(m.estimate)) for m in measured],
    )
    skipped = max(m.estimate.get("skipped", 0) for m in measured)
    if skipped:
        left_out = "pictures" if elastic.vision else "questions are about pictures that"
        print(f"{skipped:,} {left_out} could not be read and were left out")
    if options.export_results:
        from quept.evaluate.shipped import write_shipped

        rows = [(m.subject.name, m.subject.key, m.estimate) for m in measured]
        write_shipped(options.export_results, rows, elastic, **conditions)
    if options.json:
        print_json(conditions | {"results": [m.as_dict() for m in measured]})


@dataclass(frozen=True)
class Subject:
    """What is measured: a plan or a baseline, its size, and how to get its view and its KV cache."""

    name: str
    key: ResultKey
    deploy_bytes: int
    view: Callable[[], nn.Module]
    make_cache: Callable[[], Cache] | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured of a subject (an Estimate, AccuracyEstimate or VqaEstimate as a dict)."""

    subject: Subject
    bits_per_parameter: float
    estimate: dict

    @property
    def sizes(self) -> tuple[str, str]:
        megabytes = self.subject.deploy_bytes / 1e6
        return f"{self.bits_per_parameter:.2f}", f"{megabytes:.{1 if megabytes >= 10 else 2}f}"

    def as_dict(self) -> dict:
        subject = self.subject
        sizes = {
            "deploy_bytes": subject.deploy_bytes,
            "bits_per_parameter": round(self.bits_per_parameter, 4),
        }
        return {"plan": subject.name, "key": subject.key.plan} | sizes | self.estimate


def _plan_subject(elastic: ElasticModel, plan: PrecisionPlan, measure: Measure) -> Subject:
    from quept.evaluate import ResultKey

    key = ResultKey(plan.key(elastic.layers), elastic.identity, measure.data, dtype_name(elastic.dtype))
    cache = None if plan.kv == FULL else lambda: elastic.make_cache(plan)
    return Subject(plan.name, key, elastic.sizes.deploy(plan), lambda: elastic.view(plan), cache)


def _baseline_subject(elastic: ElasticModel, name: str, measure: Measure) -> Subject:
    """Its key names the base: how ours are quantized does not matter to it."""
    from quept.evaluate import ResultKey
    from quept.runtime.baselines import baseline_named, check_available

    baseline = baseline_named(name)
    check_available(baseline)
    key = ResultKey(baseline.key, elastic.base_identity, measure.data, dtype_name(elastic.dtype))
    return Subject(baseline.title, key, elastic.baseline_bytes(name), lambda: elastic.baseline(name))


def _measured(
    elastic: ElasticModel,
    subject: Subject,
    measure: Measure,
    results: Results,
    again: bool,
    progress: Progress,
) -> Measured:
    """From the results store where it is there, else measured now and stored."""
    stored = None if again else results.get(subject.key)
    if stored:
        estimate = stored.payload
    else:
        progress(f"{subject.name}: preparing the weights", 0.0)
        for words, share, estimate in measure.estimates(subject):  # noqa: B007  the last one counts
            progress(f"{subject.name}: {words}", share)
        results.put(subject.key, estimate)
    return Measured(subject, 8 * subject.deploy_bytes / elastic.sizes.parameters, estimate)


def _plans(options: argparse.Namespace, elastic: ElasticModel) -> list[PrecisionPlan]:
    from quept.plan import QUANTIZED_BITS

    others = options.presets or options.baseline
    plans = [plan_of(text, elastic) for text in options.plan or ([] if others else ["W4"])]
    if options.presets:
        plans.append(PrecisionPlan.full())
        plans += [elastic.layout.guarded(PrecisionPlan.uniform(bits)) for bits in reversed(QUANTIZED_BITS)]
        plans += elastic.presets
    return list({plan.key(elastic.layers): plan for plan in plans}.values())


def _conditions(options: argparse.Namespace, elastic: ElasticModel, measure: Measure) -> dict:
    return {
        "name": name_of(options.model),
        "title": elastic.title,
        "method": elastic.artifact.manifest.method,
        "group": elastic.artifact.group,
        **measure.conditions,
        "device": elastic.device.type,
        "dtype": dtype_name(elastic.dtype),
    }


def _sentence(c: dict, measure: Measure) -> str:
    ours = f"{c['method']}, group {c['group']}, " if "method" in c else ""
    return f"{c['title']}, {ours}on {measure.sentence()}, {c['dtype']} on {c['device']}"
