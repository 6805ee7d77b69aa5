"""`quept export`: one plan as a file that an engine runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from quept.export import EXPORTERS
from quept.progress import Progress

from .shared import (
    DEFAULT_MODEL,
    PLAN_HELP,
    command,
    json_option,
    model_options,
    opened,
    plan_of,
    print_json,
    print_table,
)


def export_parser(commands) -> None:
    p = command(
        commands,
        "export",
        _export,
        "write one plan as a file that an engine runs",
        f"quept export {DEFAULT_MODEL} --plan W4 --to gguf smollm2-w4.gguf",
        "Codes are kept as calibration made them; what is written is read back and compared.",
    )
    model_options(p)
    p.add_argument("place", metavar="OUT", help="the file, or the folder, to write")
    p.add_argument("--plan", default="W4", help=f"{PLAN_HELP} (default: W4)")
    p.add_argument(
        "--to",
        default="packed",
        choices=EXPORTERS,
        help=f"the format: {', '.join(EXPORTERS)} (default: packed, our own)",
    )
    p.add_argument(
        "--nearest",
        action="store_true",
        help="if the format cannot hold the plan, write the closest one that it can: wider where it must be",
    )
    p.add_argument(
        "--tensor-types",
        metavar="FILE",
        help="with --to gguf: also write the plan for `llama-quantize --tensor-type-file`, for those who "
        "round the original weights themselves",
    )
    p.add_argument("--out", action="store_true", help="may stand before OUT")
    json_option(p)


def _export(options: argparse.Namespace) -> None:
    from quept.export import exporter
    from quept.files import write_atomic
    from quept.plan import PlanError

    out = options.place
    if options.tensor_types and options.to != "gguf":
        raise ValueError("--tensor-types is for llama.cpp: give it with --to gguf")
    target = exporter(options.to)
    with Progress() as progress:
        elastic = opened(options, progress)
        plan = plan_of(options.plan, elastic)
        if why := target.refuses(elastic, plan):
            if target.lacks(elastic):
                raise PlanError(why)
            near = target.nearest(elastic, plan)
            if not options.nearest:
                size = f"{target.sizes(elastic).deploy(near) / 1e6:.1f} MB"
                raise PlanError(f"{why}; --nearest writes the closest plan that it holds, {size}")
            plan = near
        compared = target.write(elastic, plan, out, progress)
        if options.tensor_types:
            write_atomic(options.tensor_types, target.tensor_types(elastic, plan))
    bits = elastic.sizes.bits_per_parameter(plan)
    exact = "bit for bit" if compared.relative == 0 else f"within {compared.relative:.1g} of the largest"
    row = (str(out), plan.name, f"{compared.nbytes / 1e6:.1f}", f"{bits:.2f}", exact)
    print_table(("written", "plan", "MB", "bits/param", "values"), [row])
    for line in target.commands:
        print(f"  {line.format(path=_typed(out))}")
    if options.json:
        print_json(
            {
                "out": str(out),
                "to": options.to,
                "plan": plan.name,
                "bytes": compared.nbytes,
                "tensor_bytes": elastic.sizes.deploy(plan),
                "bits_per_parameter": bits,
                "layers": compared.layers,
                "relative": compared.relative,
            }
        )


def _typed(path: str | Path) -> str:
    """A path as a shell takes it."""
    import shlex

    return shlex.quote(str(path))
