"""`quept front`: the best plan found for each of several budgets, measured, as one file."""

from __future__ import annotations

import argparse
from copy import copy
from pathlib import Path

from quept.flow import SEARCH_TEXT, data_task, table_of
from quept.plan import FULL
from quept.progress import Progress

from .shared import (
    DEFAULT_MODEL,
    SCORES,
    activations,
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


def front_parser(commands) -> None:
    p = command(
        commands,
        "front",
        _front,
        "find and measure the best plan for each of several budgets: the Pareto front of bytes and KL",
        f"quept front {DEFAULT_MODEL} --bits 3 3.5 4 --seconds 600 --out front.json",
        "Each budget takes --seconds. A stopped run goes on from FILE and FILE.progress.jsonl when started "
        "again.",
    )
    model_options(p)
    text_options(p, tokens=4096)
    p.add_argument(
        "--bits",
        type=float,
        nargs="+",
        metavar="B",
        help="budgets in bits per parameter (default: 2.5 to 8; those that no plan fits are left out)",
    )
    p.add_argument(
        "--table", metavar="FILE", help="sensitivity table (default: the one that lies beside the artifact)"
    )
    p.add_argument(
        "--search-text",
        default=SEARCH_TEXT,
        metavar="TEXT",
        help=f"what plans are searched on, another text than they are measured on (default {SEARCH_TEXT})",
    )
    p.add_argument(
        "--search-tokens",
        type=count,
        default=2048,
        metavar="N",
        help="how much of it (default 2048); of the pictures or questions of a model that sees at most half",
    )
    p.add_argument(
        "--search-data",
        metavar="DATA",
        help="of a model that sees: pictures or questions to search on, a folder as of `quept evaluate "
        "--data`, or a file of questions (default: half of those beside the model)",
    )
    p.add_argument(
        "--activations",
        type=activations,
        metavar="BITS",
        help='width of every layer\'s inputs, or "as-weights" (default 16: untouched)',
    )
    p.add_argument(
        "--seconds", type=float, default=300, metavar="S", help="of search for each budget (default 300)"
    )
    p.add_argument("--trials", type=count, metavar="N", help="plans tried at most for each budget")
    p.add_argument("--seed", type=int, default=0, help="same seed, same path (default 0)")
    p.add_argument("--out", required=True, metavar="FILE", help="the front, as JSON")
    json_option(p)


def _front(options: argparse.Namespace) -> None:
    from quept.allocate.front import BITS, measure_front
    from quept.allocate.solve.constraints import Constraints
    from quept.evaluate import open_reference
    from quept.evaluate.tasks import fitting

    options.dtype = options.dtype or "float32"
    elsewhere = copy(options)
    elsewhere.text = options.search_text
    with Progress() as progress:
        elastic = opened(options, progress)
        if options.search_data and "text" in fitting(elastic):
            raise ValueError(
                f"--search-data is for models that see, and {elastic.title} reads: use --search-text"
            )
        table = table_of(elastic, options.table)
        if "text" in fitting(elastic):
            search, shown = (
                open_reference(elastic, windows_of(o, elastic, tokens, progress))
                for o, tokens in ((elsewhere, options.search_tokens), (options, options.tokens))
            )
        else:
            shown = data_task(elastic)
            among = data_task(elastic, options.search_data) if options.search_data else shown
            most = among.total if options.search_data else shown.total // 2
            search = among.first(min(options.search_tokens, most))
        front = measure_front(
            elastic,
            table,
            search,
            shown,
            options.bits or BITS,
            constraints=Constraints(activations=options.activations or FULL),
            seconds=options.seconds,
            trials=options.trials,
            seed=options.seed,
            model=name_of(options.model),
            text=name_of(options.text),
            searched=name_of(options.search_text),
            out=options.out,
            resume=Path(f"{options.out}.progress.jsonl"),
            progress=progress,
        )
    print_table(
        ("plan", "MB", "bits/param", "KL", "best uniform plan", SCORES[table.score], "embeddings"),
        [
            (
                p.name,
                f"{p.bytes / 1e6:.1f}",
                f"{p.bits_per_parameter:.2f}",
                f"{short(p.measured.kl)} ± {short(p.measured.kl_se)}",
                short(p.uniform.kl) if p.uniform else "",
                short(getattr(p.measured, table.score)),
                str(p.plan.embeddings),
            )
            for p in front.points
        ],
    )
    if front.dominated:
        print(f"beaten by a smaller plan and left out: {', '.join(p.name for p in front.dominated)}")
    if options.json:
        print_json({"out": str(options.out), "plans": [p.to_dict() for p in front.points]})
