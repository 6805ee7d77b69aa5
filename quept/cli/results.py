"""`quept results`: what was measured of a model before, by `quept evaluate` and in the app, as a table."""

from __future__ import annotations

import argparse
from pathlib import Path

from quept.files import write_atomic
from quept.progress import Progress

from .evaluate import data_options, named_plans, task_of
from .shared import DEFAULT_MODEL, command, model_options, opened, print_table, short


def results_parser(commands) -> None:
    p = command(
        commands,
        "results",
        _results,
        "list what was measured of a model on the same data before, here or in the app",
        f"quept results {DEFAULT_MODEL} --csv results.csv",
        "Plans without a name are listed by the start of their key.",
    )
    model_options(p)
    data_options(p)
    p.add_argument("--csv", metavar="FILE", help="also write everything that is known of each plan to a file")


def _results(options: argparse.Namespace) -> None:
    from quept import zoo
    from quept.evaluate import Results

    with Progress() as progress:
        elastic = opened(options, progress)
        task = task_of(options, elastic, progress)
        results = Results.open(zoo.cache_dir() / "results.sqlite")
        found = task.table(results, named_plans(elastic))
    if found.empty:
        print(f"nothing was measured of {elastic.title} on {task.describe()} yet: `quept evaluate` measures")
        return
    metrics = [metric for metric in task.metrics({}) if metric.name in found]
    rows = found.to_dict("records")
    print(f"{elastic.title} on {task.describe()}")
    print_table(
        ("plan", "dtype", task.unit, *(metric.label.lower() for metric in metrics)),
        [
            (row["name"] or row["plan"][:12], row["dtype"], f"{row['tokens']:,}")
            + tuple(short(row[metric.name]) for metric in metrics)
            for row in rows
        ],
    )
    if options.csv:
        write_atomic(Path(options.csv), found.to_csv(index=False))
        print(f"wrote {len(rows)} measurements to {options.csv}")
