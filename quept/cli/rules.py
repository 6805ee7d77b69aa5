"""`quept rules`: published rules of thumb for placing bits, tried against measured sensitivities."""

from __future__ import annotations

import argparse
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

from quept.flow import SEARCH_TEXT, data_task, table_of
from quept.progress import Progress

from .shared import (
    DEFAULT_MODEL,
    command,
    count,
    json_option,
    model_options,
    name_of,
    opened,
    print_json,
    print_table,
    short,
    text_options,
    windows_of,
)

if TYPE_CHECKING:
    from quept.plan import PrecisionPlan
    from quept.runtime import ElasticModel


def rules_parser(commands) -> None:
    p = command(
        commands,
        "rules",
        _rules,
        "try published rules of thumb for placing bits against measured sensitivities",
        f"quept rules {DEFAULT_MODEL} --out rules.json",
        "Every rule allocates at several sizes, and its plans are measured whole. FILE is written after "
        "each; a stopped run measures no plan again that is in FILE.progress.jsonl. "
        "`quept allocate --by RULE` gives one of those plans.",
    )
    model_options(p)
    text_options(p, tokens=2048)
    p.add_argument(
        "--bits",
        type=float,
        nargs="+",
        metavar="B",
        help="sizes, as those of uniform plans of so many bits (default: 2.5 3 3.5 4 5)",
    )
    p.add_argument(
        "--table", metavar="FILE", help="sensitivity table (default: the one that lies beside the artifact)"
    )
    p.add_argument(
        "--rule",
        action="append",
        metavar="RULE",
        help="try this one alone; repeat for several (default: all)",
    )
    p.add_argument(
        "--read-text",
        default=SEARCH_TEXT,
        metavar="TEXT",
        help=f"what rules read, another text than plans are measured on (default {SEARCH_TEXT})",
    )
    p.add_argument(
        "--read-tokens",
        type=count,
        default=2048,
        metavar="N",
        help="how much of it (default 2048); of a classifier's pictures at most half",
    )
    p.add_argument("--out", required=True, metavar="FILE", help="the trial, as JSON; the app shows it")
    json_option(p)


def _rules(options: argparse.Namespace) -> None:
    from quept.allocate.rules.trial import BITS, RULES, save_trial, trial
    from quept.allocate.search.race import MeasurementLog
    from quept.evaluate.tasks import fitting

    options.dtype = options.dtype or "float32"
    lines = Path(f"{options.out}.progress.jsonl")
    if unknown := [name for name in options.rule or () if name not in RULES]:
        raise ValueError(f"no rule {unknown[0]!r}: give {', '.join(RULES)}")
    bits, found = tuple(sorted(options.bits or BITS)), {}
    with Progress() as progress:
        elastic = opened(options, progress)
        table, log = table_of(elastic, options.table), MeasurementLog(lines, elastic)
        tasks = fitting(elastic)
        if "text" not in tasks and "image" not in tasks:
            raise ValueError(f"rules are for language models and classifiers, and {elastic.title} is neither")
        on = _text if "text" in tasks else _pictures
        read, data, measured, conditions = on(options, elastic, progress)
        fitting_rules = (name for name, rule in RULES.items() if "text" in tasks or not rule.of_text)
        chosen = options.rule or tuple(fitting_rules)

        def kl(plan) -> float:
            key = plan.key(elastic.layers), data
            if key not in log.estimates:
                log.add({"plan": key[0], "windows": key[1], "estimate": measured(plan)})
            return log.estimates[key]["kl"]

        for name, verdict in trial(elastic, table, read, kl, bits, chosen):
            found[name] = verdict
            save_trial(options.out, elastic, found, **conditions)
            progress(f"{name}: {verdict.wasted:.2f} bits wasted", len(found) / (len(chosen) + 2))
    lines.unlink()
    print_table(
        ("rule", "rank correlation", "bits wasted", "seconds", *(f"KL at {b:g} bits" for b in bits)),
        [
            (
                name,
                "" if v.correlation is None else f"{v.correlation:.2f}",
                f"{v.wasted:.2f}",
                f"{v.seconds:.0f}",
                *(next((short(kl) for at, _, kl in v.front if at == b), "") for b in bits),
            )
            for name, v in found.items()
        ],
    )
    if options.json:
        print_json({"out": str(options.out), "rules": {n: v.wasted for n, v in found.items()}})


def _text(options: argparse.Namespace, elastic: ElasticModel, progress: Progress) -> tuple:
    """What rules read, the id of what plans are measured on, how one is, and the conditions."""
    from quept.evaluate import divergence, open_reference

    elsewhere = copy(options)
    elsewhere.text = options.read_text
    read = windows_of(elsewhere, elastic, options.read_tokens, progress)
    shown = open_reference(elastic, windows_of(options, elastic, options.tokens, progress))

    def measured(plan: PrecisionPlan) -> dict:
        *_, last = divergence(elastic.view(plan), shown, shown.windows)
        return last.to_dict()

    conditions = {
        "text": name_of(options.text),
        "tokens": shown.windows.ids.numel(),
        "context": shown.windows.context,
        "read": f"{read.ids.numel():,} tokens of {name_of(options.read_text)}, context {read.context}",
    }
    return read, shown.windows.id, measured, conditions


def _pictures(options: argparse.Namespace, elastic: ElasticModel, progress: Progress) -> tuple:
    """The same of a classifier: rules read the first of its pictures."""
    task = data_task(elastic)
    read = task.first(min(options.read_tokens, task.total // 2))

    def measured(plan: PrecisionPlan) -> dict:
        *_, last = task.estimates(elastic.view(plan), plan)
        return last.to_dict()

    conditions = {"text": task.conditions["data"], "tokens": task.total, "unit": task.unit}
    return read, task.id, measured, conditions | {"read": f"the first {read.total:,} of them"}
