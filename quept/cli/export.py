"""`quept export`: one plan as a file."""

from __future__ import annotations

import argparse

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
        "write the packed weights of one plan to a safetensors file",
        f"quept export {DEFAULT_MODEL} --plan W4 --out smollm2-w4.safetensors",
    )
    model_options(p)
    p.add_argument("--plan", default="W4", help=f"{PLAN_HELP} (default: W4)")
    p.add_argument("--out", required=True, metavar="FILE", help="the safetensors file")
    json_option(p)


def _export(options: argparse.Namespace) -> None:
    from quept.export import export

    with Progress() as progress:
        elastic = opened(options, progress)
        plan = plan_of(options.plan, elastic)
        progress("writing and reading back", None)
        packed = export(elastic, plan, options.out)
    bits = elastic.sizes.bits_per_parameter(plan)
    row = (str(options.out), plan.name, f"{packed.nbytes / 1e6:.1f}", f"{bits:.2f}")
    print_table(("file", "plan", "MB of tensors", "bits/param"), [row])
    if options.json:
        print_json(
            {
                "out": str(options.out),
                "plan": plan.name,
                "tensor_bytes": packed.nbytes,
                "bits_per_parameter": bits,
            }
        )
