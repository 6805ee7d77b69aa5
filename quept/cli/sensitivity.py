"""`quept sensitivity`: the table behind predicted quality."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quept.flow import PICTURES, TOKENS, WHOLE, sensitivity, table_of
from quept.plan import PrecisionPlan
from quept.progress import Progress

from .shared import (
    DEFAULT_MODEL,
    SCORES,
    command,
    count,
    json_option,
    model_options,
    opened,
    plan_of,
    print_json,
    print_table,
    short,
    text_options,
)

if TYPE_CHECKING:
    from quept.allocate import SensitivityTable
    from quept.runtime import ElasticModel


def sensitivity_parser(commands) -> None:
    p = command(
        commands,
        "sensitivity",
        _sensitivity,
        "measure what each layer's rounding costs by itself: the table behind predicted quality",
        f"quept sensitivity {DEFAULT_MODEL} --workers 2 --out smollm2-sensitivity.json",
        "It takes long: 7 passes a layer. --text own-words measures it on what the model writes itself. "
        "A stopped run goes on from FILE.progress.jsonl when started again.",
    )
    model_options(p)
    things = f"of it (default {TOKENS}, or as much as the table to extend), or how many of the pictures or "
    text_options(p, None, f"{things}questions of a model that sees (default {PICTURES})")
    p.add_argument(
        "--curve-tokens",
        type=count,
        default=4096,
        metavar="N",
        help="tokens, pictures or questions for whole uniform plans (default 4096)",
    )
    p.add_argument(
        "--per",
        choices=("layer", "block"),
        default="layer",
        help="change one layer (default) or one block at a time",
    )
    p.add_argument(
        "--activations", action="store_true", help="also round each layer's inputs by themselves, 4 to 8 bits"
    )
    p.add_argument(
        "--kv", action="store_true", help="also round each block's keys and values by themselves, 2 to 8 bits"
    )
    p.add_argument(
        "--extend",
        metavar="TABLE",
        help="a table measured on the same text: it gets what --kv and --whole ask for, graded widths of "
        "embeddings that it lacks, and nothing else is measured",
    )
    p.add_argument(
        "--around", metavar="PLAN", help="change layers of this plan, like W3, not of full precision"
    )
    p.add_argument(
        "--whole",
        action="extend",
        nargs="+",
        metavar="PLAN",
        help=f"plans like W4E8 to measure whole beside W2 to W8 (default: {', '.join(WHOLE)})",
    )
    p.add_argument("--workers", type=count, default=1, metavar="N", help="processes to share the work")
    p.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="workers of a Ray cluster (default: one here)",
    )
    p.add_argument("--out", required=True, metavar="FILE", help="the table, as JSON")
    json_option(p)


def _of_texts(options: argparse.Namespace, elastic: ElasticModel) -> dict[str, Any]:
    """Options that only language models have; ValueError for another model."""
    from quept.evaluate.tasks import fitting

    given = {
        "--per block": options.per == "block",
        "--around": options.around,
        "--workers": options.workers > 1,
        "--ray": options.ray is not None,
    }
    if "text" not in fitting(elastic):
        if wrong := [name for name, said in given.items() if said]:
            raise ValueError(f"{wrong[0]} is for language models, and {elastic.title} is none: leave it out")
        return {}
    return {
        "per": options.per,
        "base": plan_of(options.around, elastic) if options.around else None,
        "workers": options.workers,
        "threads": options.threads,
        "executor": "processes" if options.ray is None else "ray",
        "address": options.ray or None,
    }


def _against(table: SensitivityTable, elastic: ElasticModel) -> str:
    """How far a table on another text agrees with the one that comes with the model; "" where none does."""
    from quept.allocate import SensitivityTable
    from quept.allocate.sensitivity.agreement import COMPARED, agreement

    file = elastic.origin.beside("sensitivity.json")
    usual = SensitivityTable.load(file).of(elastic) if file else None
    if usual is None or usual.data["text"] == table.data["text"] or COMPARED not in table.widths:
        return ""
    return f"against the table on {usual.data['text']}: {agreement(usual, table, elastic.layout).describe()}"


def _sensitivity(options: argparse.Namespace) -> None:
    out, lines = Path(options.out), Path(f"{options.out}.progress.jsonl")
    options.dtype = options.dtype or "float32"
    with Progress() as progress:
        elastic = opened(options, progress)
        if options.kv and not elastic.has_cache:
            raise ValueError(f"{elastic.title} keeps no keys and values: leave --kv out")
        table = sensitivity(
            elastic,
            options.text,
            options.tokens,
            options.curve_tokens,
            options.context,
            activations=options.activations,
            cache=options.kv,
            extend=table_of(elastic, options.extend) if options.extend else None,
            whole=options.whole or (() if options.around or options.extend else WHOLE),
            progress=progress,
            resume=lines,
            **_of_texts(options, elastic),
        )
    table.save(out)
    lines.unlink(missing_ok=True)
    print(f"{out}: {table.conditions}")
    if against := _against(table, elastic):
        print(against)
    print_table(
        ("width", "sum of sensitivities", "KL, measured whole", SCORES[table.score]),
        [
            (
                f"W{bits}",
                short(table.total(PrecisionPlan.uniform(bits))),
                short(row["kl"]),
                short(row[table.score]),
            )
            for bits, row in sorted(table.uniform.items(), reverse=True)
        ],
    )
    if options.json:
        print_json(
            {
                "out": str(out),
                "model": table.model,
                "layers": len(table.layers),
                "conditions": table.conditions,
            }
        )
