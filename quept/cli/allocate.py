"""`quept allocate`: the best bits for a budget, as a plan file."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from quept.export import EXPORTERS
from quept.flow import front_of, table_of
from quept.progress import Progress

from .shared import (
    DEFAULT_MODEL,
    activations,
    command,
    json_option,
    model_options,
    opened,
    print_json,
    print_table,
    short,
)

if TYPE_CHECKING:
    from quept.allocate import SensitivityTable
    from quept.allocate.solve.solver import Constraints
    from quept.runtime import ElasticModel

LIMIT = "LAYER=BITS"
SHOWN = {"kl": "mean KL", "ppl": "perplexity", "top1": "accuracy", "same_top": "same first choice"}
READ, PICTURES = 2048, 200  # what a rule of thumb reads: tokens, or pictures
NEAR = 0.05  # by how much what a front lets expect may differ from the prediction unmentioned


def allocate_parser(commands) -> None:
    p = command(
        commands,
        "allocate",
        _allocate,
        "find the best bits for a budget: of all plans that fit, the one with the least predicted harm",
        f'quept allocate {DEFAULT_MODEL} "60 MB" --floor "*.down_proj=3" --out 60mb.json',
        "It reads a table of `quept sensitivity` and measures nothing. A plan that was measured whole, for "
        "the table or a front, is given where it is known to be better. Of several limits that fit a layer, "
        "the last counts.",
    )
    model_options(p)
    p.add_argument(
        "budget",
        metavar="BUDGET",
        help='"60 MB", "3.2 bits", "40 %%", "2 %% worse", "1 point" (accuracy) or "120 MB with 2,048 tokens"',
    )
    p.add_argument(
        "--table",
        metavar="FILE",
        help="sensitivity table (default: the one that lies beside the artifact; own-words: where there is "
        "one, that which was measured on what the model writes itself)",
    )
    p.add_argument(
        "--front",
        metavar="FILE",
        help="measured front to take plans from, too (default: the one that lies beside the artifact)",
    )
    p.add_argument(
        "--by",
        metavar="RULE",
        help="place bits by a published rule of thumb, not by measured sensitivities (see `quept rules`): "
        "gradient, fisher, activations, error, input-change, relevance, z-score, edges, depth or random",
    )
    p.add_argument("--out", metavar="FILE", help="where the plan goes, like plan.json")
    p.add_argument(
        "--widths", type=_widths, metavar="BITS", help="what layers may have, like 3,4,6 (default 2 to 8)"
    )
    p.add_argument(
        "--embeddings",
        type=_widths,
        metavar="BITS",
        help="what embeddings and head may have (default 4,5,6,7,8,16 and, where the table knows them, 3.5, "
        "4.5, 5.5 and 6.5: more bits for common tokens than for rare ones)",
    )
    p.add_argument(
        "--kv",
        type=_widths,
        metavar="BITS",
        help="what keys and values of a block may have where the budget counts a context (default 2 to 8, "
        "16)",
    )
    which = (
        'a layer, all that a quoted pattern fits, "embeddings", "kv" or "kv:BLOCK" (keys and values of all '
        "blocks or of one); repeat for several"
    )
    for option, what in (("--pin", "exact bits"), ("--floor", "fewest bits"), ("--ceiling", "most bits")):
        p.add_argument(
            option,
            type=_limit,
            action="append",
            default=[],
            metavar=LIMIT,
            help=f"{what} of {which}",
        )
    p.add_argument(
        "--tie",
        choices=("qkv", "block"),
        help="one width for q, k and v, and one for gate and up; or one for each block",
    )
    p.add_argument(
        "--activations",
        type=activations,
        metavar="BITS",
        help='width of every layer\'s inputs, or "as-weights" (default 16: untouched)',
    )
    p.add_argument(
        "--constraints",
        metavar="FILE",
        help="pins, floors, ceilings and ties as the page's Constraints save them; options come on top",
    )
    p.add_argument(
        "--for",
        dest="target",
        choices=tuple(EXPORTERS),
        help="count the bytes of a file for that engine, and give only widths that it holds (default: bytes "
        "of the weights as we pack them)",
    )
    json_option(p)


def _allocate(options: argparse.Namespace) -> None:
    from quept.allocate.solve.asked import asked
    from quept.allocate.solve.container import within
    from quept.export import exporter

    with Progress() as progress:
        elastic = opened(options, progress)
    table, sizes = table_of(elastic, options.table), elastic.sizes
    constraints = _constraints(options, elastic)
    target = exporter(options.target) if options.target else None
    if target:
        sizes, constraints = within(target, elastic, constraints)
    if options.by:
        ruled = _ruled(options.by, elastic)
        known, budget = asked(options.budget, ruled, sizes, constraints)
        predicted = table.predicted(known.allocation.plan) if table.covers(known.allocation.plan) else {}
        known = replace(known, allocation=replace(known.allocation, predicted=predicted))
    else:
        front = front_of(elastic, options.front)
        known, budget = asked(options.budget, table, sizes, constraints, front)
    found, metrics = known.allocation, known.measured or known.allocation.predicted
    if options.out:
        found.plan.save(options.out, elastic.origin.models[0])
    bits = sizes.bits_per_parameter(found.plan)
    layers = Counter(b.weights for b in found.plan.resolve(elastic.layers).values())
    tier = "measured" if known.measured else "predicted"
    shown = {key: what for key, what in SHOWN.items() if key in metrics}
    print_table(
        ("plan", "MB", "bits/param", *(f"{what}, {tier}" for what in shown.values())),
        [
            (
                found.plan.name,
                f"{found.bytes / 1e6:.1f}",
                f"{bits:.2f}",
                *(short(metrics[key]) for key in shown),
            )
        ],
    )
    counts = ", ".join(f"{count} at {width}" for width, count in sorted(layers.items()))
    kv = Counter(found.plan.resolve_cache(elastic.cached_blocks).values())
    spread = ", ".join(
        f"{count} at {width}" if len(kv) > 1 else f"{width}" for width, count in sorted(kv.items())
    )
    cache = f"; of the KV cache: {spread}" if found.plan.rounds_cache else ""
    print(f"bits of layers: {counts}; of embeddings: {found.plan.embeddings}{cache}")
    if known.describe():
        print(known.describe())
    elif known.kl is not None and not math.isclose(known.kl, metrics["kl"], rel_tol=NEAR):
        print(f"the measured front lets expect a mean KL of {short(known.kl)}")
    elif found.gap:
        print(
            f"sum of sensitivities: {short(found.cost)}, at most {short(found.gap)} above the least possible"
        )
    if target:
        print(f"as a file for {target.title}: {found.bytes:,} bytes")
    if options.out:
        print(f"{options.out}: the plan; `quept evaluate {options.model} --plan {options.out}` measures it")
    if options.json:
        print_json(
            {
                "out": options.out,
                "budget": budget,
                "bytes": found.bytes,
                "for": options.target,
                "bits_per_parameter": bits,
                "sensitivity": found.cost,
                "gap": found.gap,
                "predicted": found.predicted,
                "origin": known.origin,
                "measured": dict(known.measured),
                "expected_kl": known.kl,
                "layers": {str(width): count for width, count in sorted(layers.items())},
                "embeddings": found.plan.embeddings,
                "kv": found.plan.kv,
                "kv_blocks": dict(found.plan.kv_blocks),
            }
        )


def _ruled(rule: str, elastic: ElasticModel) -> SensitivityTable:
    """The costs of a rule, which reads a text that no plan is measured on, or pictures; ValueError for an
    unknown one and for a model that sees and talks."""
    from quept.allocate.rules import rule_table
    from quept.evaluate.tasks import fitting
    from quept.flow import SEARCH_TEXT, data_task, text_reference

    tasks = fitting(elastic)
    if "text" in tasks:
        return rule_table(rule, elastic, text_reference(elastic, SEARCH_TEXT, READ).windows)
    if "image" not in tasks:
        raise ValueError(f"--by is for language models and classifiers, and {elastic.title} is neither")
    return rule_table(rule, elastic, data_task(elastic).first(PICTURES))


def _constraints(options: argparse.Namespace, elastic: ElasticModel) -> Constraints:
    """Those of the file, and on top of them those of the options."""
    from quept.allocate.solve.constraints_file import constraints_of, load_constraints

    said = load_constraints(options.constraints) if options.constraints else {}
    for name in ("pin", "floor", "ceiling"):
        said[name] = said.get(name, {}) | dict(getattr(options, name))
    for name in ("tie", "widths", "embeddings", "kv", "activations"):
        if (given := getattr(options, name)) is not None:
            said[name] = given
    return constraints_of(said, elastic.layout)


def _widths(text: str) -> tuple[int | float, ...]:
    try:
        return tuple(float(bits) if "." in bits else int(bits) for bits in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of widths like 3,4,6") from None


def _limit(text: str) -> tuple[str, int]:
    layer, equals, bits = text.rpartition("=")
    if not (layer and equals and bits.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form {LIMIT}")
    return layer, int(bits)
