"""`quept plan-run`: what a model will cost in bytes and time, before any of it is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from .shared import DEFAULT_MODEL, MODEL_HELP, command, count, json_option, print_table, short, threads


def plan_run_parser(commands) -> None:
    p = command(
        commands,
        "plan-run",
        _plan_run,
        "compute what a model will cost in memory and time, from its shapes alone",
        f"quept plan-run {DEFAULT_MODEL} --recipe weight-only",
        "Only config.json is read. Times are for this machine, or one stated by --tflops and --bandwidth.",
    )
    p.add_argument("model", help=MODEL_HELP)
    p.add_argument("--recipe", metavar="RECIPE", help="also calibrating by this recipe (see `calibrate`)")
    p.add_argument(
        "--samples",
        type=count,
        metavar="N",
        help="windows of 512 tokens, or pictures, that a plan is measured on (default: 8, or 1000)",
    )
    p.add_argument("--tflops", type=float, metavar="X", help="of another machine, in products")
    p.add_argument("--bandwidth", type=float, metavar="GB/S", help="of its memory")
    p.add_argument("--threads", type=threads, metavar="N", help="processor threads to use (default: all)")
    json_option(p)


def _plan_run(options: argparse.Namespace) -> None:
    import torch

    from quept.config import Recipe
    from quept.costs import Machine, costs, shapes_of, to_json

    if bool(options.tflops) != bool(options.bandwidth):
        raise ValueError("another machine is stated by both: --tflops 100 --bandwidth 1000")
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = Recipe.load(options.recipe, options.model) if options.recipe else None
    shapes = shapes_of(options.model)
    machine = (
        Machine(options.tflops * 1e12, options.bandwidth * 1e9) if options.tflops else Machine.here(shapes)
    )
    found = list(costs(shapes, machine, recipe, options.samples))
    print(
        f"{shapes.title}: {shapes.sizes.parameters / 1e6:,.1f} M parameters; machine {machine.name}: "
        f"{short(machine.flops / 1e9)} GFLOP/s, {short(machine.bandwidth / 1e9)} GB/s"
    )
    print_table(("step", "predicted time", "memory at most"), _rows(found))
    if options.json:
        print(to_json(shapes, machine, found))


def _rows(found) -> Iterator[tuple[str, str, str]]:
    for cost in found:
        yield cost.what, _time(cost.seconds), f"{cost.memory / 1e9:.2f} GB"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{short(1000 * seconds)} ms"
    return f"{short(seconds)} s" if seconds < 600 else f"{short(seconds / 3600)} h"
