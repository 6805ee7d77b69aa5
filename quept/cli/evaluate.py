"""`quept evaluate`: what the tasks of a model measure (perplexity or accuracy, divergence), and the size, of
plans."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from quept.files import dtype_name
from quept.plan import WEIGHT_BITS, PrecisionPlan
from quept.progress import Progress

from .shared import (
    DEFAULT_MODEL,
    PLAN_HELP,
    command,
    count,
    json_option,
    model_options,
    name_of,
    opened,
    plan_of,
    print_json,
    print_table,
    short,
    text_options,
)

if TYPE_CHECKING:
    from quept.evaluate import EvalTask, Metric, ResultKey, Results, Speed, TaskEstimate
    from quept.runtime import ElasticModel

DATA_OPTIONS = ("text", "tokens", "context", "data", "labels", "images", "questions", "choices", "items")


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
        help="nf4 or int8, beside which no W4 is measured unless --plan asks for it; repeat for several",
    )
    data_options(p)
    p.add_argument(
        "--again", action="store_true", help="measure even what was measured already, full precision too"
    )
    p.add_argument(
        "--speed",
        action="store_true",
        help="also time a prefill of 512 tokens and decoding, of a language model",
    )
    p.add_argument(
        "--lm-eval",
        type=lambda names: [name for name in names.split(",") if name],
        metavar="TASKS",
        help="hand each plan to lm-evaluation-harness instead (pip install lm-eval), for tasks like "
        "arc_easy,hellaswag; --items limits each of them",
    )
    p.add_argument(
        "--export-results",
        metavar="FILE",
        help="also write the results to a file that the app reads at its start",
    )
    json_option(p)


def data_options(p: argparse.ArgumentParser) -> None:
    """The options that say what is measured: a task, and its data."""
    p.add_argument(
        "--task", metavar="NAME", help="what to measure, for a model with several tasks (default: its first)"
    )
    text_options(p, 4096)
    p.set_defaults(**dict.fromkeys(DATA_OPTIONS))  # so that a given one is known from a missing one
    p.add_argument(
        "--data",
        metavar="FOLDER",
        help="pictures to classify, in a folder for each class as ImageNet has them; for a vision-language "
        "model a folder of pictures and pairs.json, a list of entries like "
        '{"image": "cat.jpg", "question": "What is on the sofa?", "answer": "A cat."} '
        "(default: what comes with the model)",
    )
    p.add_argument(
        "--labels", metavar="FILE", help="a line for each picture or folder in --data: its path and its class"
    )
    p.add_argument(
        "--choices",
        metavar="NAMES",
        help="for --task choice: sets of multiple-choice questions with commas between, of those that `quept "
        'models` lists, or a file with {"context", "choices", "right"} a line (default: a mixture)',
    )
    p.add_argument(
        "--items", type=count, metavar="N", help="how many multiple-choice questions (default: 400)"
    )
    p.add_argument("--images", type=count, metavar="N", help="how many pictures (default: all)")
    p.add_argument(
        "--questions", type=count, metavar="N", help="how many questions about pictures (default: all)"
    )


def _evaluate(options: argparse.Namespace) -> None:
    from quept import zoo
    from quept.evaluate import Results

    with Progress() as progress:
        elastic = opened(options, progress)
        plans = _plans(options, elastic)
        if options.lm_eval:
            return _harness(options, elastic, plans, progress)
        task = task_of(options, elastic, progress)
        results = Results.open(zoo.cache_dir() / "results.sqlite")
        if options.again:  # full precision's answers too
            shutil.rmtree(task.reference.folder, ignore_errors=True)
        measured = [_measured(elastic, plan, task, results, options.again, progress) for plan in plans]
        speeds = _speeds(elastic, plans, progress) if options.speed else {}
    conditions = _conditions(options, elastic, task)
    for plan in plans:
        conditions |= elastic.conditions(plan)
    ours = f"{conditions['method']}, group {conditions['group']}, " if "method" in conditions else ""
    print(
        f"{elastic.title}, {ours}on {task.describe()}, {dtype_name(elastic.dtype)} on {elastic.device.type}"
    )
    metrics = {metric.name: _heading(metric) for m in measured for metric in m.estimate.metrics}
    print_table(
        ("plan", "bits/param", "MB", *metrics.values(), "notes"),
        [(m.plan.name or "plan", *m.sizes, *m.cells(metrics)) for m in measured],
    )
    skipped = max(m.estimate.payload.get("skipped", 0) for m in measured)
    if skipped:
        print(f"{skipped:,} {task.unit} could not be read and were left out")
    if speeds:
        first = next(iter(speeds.values()))
        print(f"\nspeed on {first.threads} threads of {first.device}, {first.dtype}, context {first.context}")
        rows = [(n, f"{s.prefill_ms:.0f}", f"{s.decode_tokens_per_s:.1f}") for n, s in speeds.items()]
        print_table(("plan", "prefill ms", "tokens/s"), rows)
    if options.export_results:
        from quept.evaluate.shipped import write_shipped

        rows = [(m.plan.name, m.key, m.estimate.to_dict()) for m in measured]
        write_shipped(options.export_results, rows, elastic, **conditions)
    if options.json:
        timed = {"speed": {name: s.to_dict() for name, s in speeds.items()}} if speeds else {}
        print_json(conditions | {"results": [m.as_dict() for m in measured]} | timed)


def _harness(
    options: argparse.Namespace, elastic: ElasticModel, plans: list[PrecisionPlan], progress: Progress
) -> None:
    """What lm-evaluation-harness says of each plan; ValueError without it, and for no language model."""
    from quept.evaluate.harness import harness

    found = {}
    for i, plan in enumerate(plans):
        progress(f"{plan.name}: lm-evaluation-harness", i / len(plans))
        name, view = plan.name or "plan", elastic.view(plan)
        found[name] = harness(view, elastic.tokenizer, options.lm_eval, options.items)["results"]
    print(f"{elastic.title}, by lm-evaluation-harness")
    rows = [
        (name, task, metric.partition(",")[0], short(value))
        for name, results in found.items()
        for task, metrics in results.items()
        for metric, value in metrics.items()
        if isinstance(value, float)
    ]
    print_table(("plan", "task", "metric", "value"), rows)
    if options.json:
        print_json({"harness": found})


def _speeds(elastic: ElasticModel, plans: list[PrecisionPlan], progress: Progress) -> dict[str, Speed]:
    """How fast each plan runs here; ValueError for a model that is no language model."""
    from quept.evaluate import measure_speed
    from quept.evaluate.tasks import fitting
    from quept.models.context import context_length

    if "text" not in fitting(elastic):
        raise ValueError(f"--speed times language models, and {elastic.title} is none: leave it out")
    speeds, decoded = {}, 32
    context = min(512, (context_length(elastic.base) or 544) - decoded)
    for i, plan in enumerate(plans):
        progress(f"{plan.name}: speed", i / len(plans))
        cache = partial(elastic.make_cache, plan)
        speeds[plan.name or "plan"] = measure_speed(elastic.view(plan), context, decoded, make_cache=cache)
    return speeds


def task_of(options: argparse.Namespace, elastic: ElasticModel, progress: Progress) -> EvalTask:
    """The task that was asked for, on the data that were given; ValueError for options of another one."""
    from quept.evaluate.tasks import TASKS, fitting

    own = fitting(elastic)
    name = options.task or next(iter(own))
    if name not in own:
        raise ValueError(f"{elastic.title} has no task {name!r}: give --task {' or '.join(own)}")
    given: dict[str, Any] = {key: getattr(options, key) for key in DATA_OPTIONS if getattr(options, key)}
    for key in given:
        if key not in own[name].options:
            owner = next(task for task in TASKS.values() if key in task.options)
            if owner.name in own:
                raise ValueError(f"the task {name!r} takes no --{key}: leave it out")
            raise ValueError(f"--{key} is for {owner.models}, and {elastic.title} is none: leave it out")
    return own[name](elastic, given=given | {"progress": progress})


@dataclass(frozen=True)
class Measured:
    """What was measured of a plan, and its size."""

    plan: PrecisionPlan
    key: ResultKey
    deploy_bytes: int
    bits_per_parameter: float
    estimate: TaskEstimate

    @property
    def sizes(self) -> tuple[str, str]:
        megabytes = self.deploy_bytes / 1e6
        return f"{self.bits_per_parameter:.2f}", f"{megabytes:.{1 if megabytes >= 10 else 2}f}"

    def cells(self, names: Iterable[str]) -> tuple[str, ...]:
        """The metrics of these names, "" where the plan has none, and what else there is to say of all."""
        own = {metric.name: _cell(metric) for metric in self.estimate.metrics}
        notes = (text for m in self.estimate.metrics for text in (m.note, m.detail) if text)
        return *(own.get(name, "") for name in names), "; ".join(notes)

    def as_dict(self) -> dict:
        sizes = {
            "deploy_bytes": self.deploy_bytes,
            "bits_per_parameter": round(self.bits_per_parameter, 4),
        }
        return {"plan": self.plan.name, "key": self.key.plan} | sizes | self.estimate.to_dict()


def _heading(metric: Metric) -> str:
    return metric.label[0].lower() + metric.label[1:] + (" (95 %)" if metric.unit == "share" else "")


def _cell(metric: Metric) -> str:
    if metric.unit == "share":
        value, low, high = (100 * x for x in (metric.value, metric.low, metric.high))
        return f"{value:.1f} ({low:.1f} to {high:.1f}) %"
    return short(metric.value) + ("" if metric.high is None else f" ± {short(metric.high - metric.value)}")


def _measured(
    elastic: ElasticModel,
    plan: PrecisionPlan,
    task: EvalTask,
    results: Results,
    again: bool,
    progress: Progress,
) -> Measured:
    """From the results store where it is there, else measured now and stored."""
    key, sizes = task.key(plan), elastic.sizes
    stored = None if again else results.get(key, task.read)
    if stored:
        estimate = task.read(stored.payload)
    else:
        progress(f"{plan.name}: preparing the weights", 0.0)
        for estimate in task.estimates(elastic.view(plan), plan):
            found = ", ".join(f"{_heading(metric)} {_cell(metric)}" for metric in estimate.metrics[:2])
            progress(f"{plan.name}: {found}", estimate.done / estimate.total)
        results.put(key, estimate.to_dict())
    return Measured(plan, key, sizes.deploy(plan), sizes.bits_per_parameter(plan), estimate)


def _plans(options: argparse.Namespace, elastic: ElasticModel) -> list[PrecisionPlan]:
    others = options.presets or options.baseline
    asked = [*(options.plan or ([] if others else ["W4"])), *options.baseline]
    plans = [plan_of(text, elastic) for text in asked]
    if options.presets:
        plans += uniform_plans(elastic) + elastic.presets
    return list({plan.key(elastic.layers): plan for plan in plans}.values())


def uniform_plans(elastic: ElasticModel) -> list[PrecisionPlan]:
    """Full precision and every uniform width, as they are meant for this model."""
    vision = elastic.layout.vision_layers
    return [PrecisionPlan.uniform(bits).keeping(vision) for bits in reversed(WEIGHT_BITS)]


def named_plans(elastic: ElasticModel) -> list[PrecisionPlan]:
    """Every plan that has a name for this model: uniform, preset, on its front, a setting of other tools."""
    from quept.allocate.front import fitting_front

    front = fitting_front(elastic.origin.beside("front.json"), elastic)
    best = [replace(point.plan, name=point.name) for point in front.points] if front else []
    others = [PrecisionPlan.uniform(setting) for setting in elastic.sizes.whole]
    return [*others, *elastic.presets, *best, *uniform_plans(elastic)]


def _conditions(options: argparse.Namespace, elastic: ElasticModel, task: EvalTask) -> dict:
    return {
        "name": name_of(options.model),
        "title": elastic.title,
        **task.conditions,
        "device": elastic.device.type,
        "dtype": dtype_name(elastic.dtype),
    }
