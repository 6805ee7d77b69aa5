"""`quept sensitivity`: the table behind predicted quality."""

from __future__ import annotations

import argparse
from pathlib import Path

from quept.plan import PrecisionPlan
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


def sensitivity_parser(commands) -> None:
    p = command(
        commands,
        "sensitivity",
        _sensitivity,
        "measure what each layer's rounding costs by itself: the table behind predicted quality",
        f"quept sensitivity {DEFAULT_MODEL} --tokens 512 --out smollm2-sensitivity.json",
        "It takes long: 7 passes a layer. A stopped run goes on from FILE.progress.jsonl when started again.",
    )
    model_options(p)
    text_options(p, tokens=1024)
    p.add_argument(
        "--curve-tokens",
        type=count,
        default=4096,
        metavar="N",
        help="tokens for whole uniform plans (default 4096)",
    )
    p.add_argument(
        "--per",
        choices=("layer", "block"),
        default="layer",
        help="change one layer (default) or one block at a time",
    )
    p.add_argument("--out", required=True, metavar="FILE", help="the table, as JSON")
    json_option(p)


def _sensitivity(options: argparse.Namespace) -> None:
    from quept import zoo
    from quept.allocate import sensitivity
    from quept.evaluate import Reference

    out, lines = Path(options.out), Path(f"{options.out}.progress.jsonl")
    options.dtype = options.dtype or "float32"
    with Progress() as progress:
        elastic = opened(options, progress)
        windows = windows_of(options, elastic, options.tokens, progress)
        whole = windows_of(options, elastic, options.curve_tokens, progress)
        reference = Reference.open(
            elastic.fingerprint, whole, elastic.reference, zoo.cache_dir() / "reference"
        )
        table = sensitivity(
            elastic,
            windows,
            reference,
            per=options.per,
            model=name_of(options.model),
            text=name_of(options.text),
            progress=progress,
            resume=lines,
        )
    table.save(out)
    lines.unlink()
    print(f"{out}: {table.conditions}")
    print_table(
        ("width", "sum of sensitivities", "KL, measured whole", "perplexity"),
        [
            (
                f"W{bits}",
                short(table.total(PrecisionPlan.uniform(bits))),
                short(row["kl"]),
                short(row["ppl"]),
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
