"""`quept routing`: which experts of a mixture a text asks."""

from __future__ import annotations

import argparse

from quept.progress import Progress

from .shared import (
    command,
    json_option,
    model_options,
    opened,
    print_json,
    print_table,
    text_options,
    windows_of,
)


def routing_parser(commands) -> None:
    p = command(
        commands,
        "routing",
        _routing,
        "count how often each expert of a mixture is chosen on a text",
        "quept routing org/mixture --tokens 2048",
    )
    model_options(p)
    text_options(p, tokens=2048)
    json_option(p)


def _routing(options: argparse.Namespace) -> None:
    from quept.evaluate.routing import routing_counts

    with Progress() as progress:
        elastic = opened(options, progress)
        if not elastic.layout.routers:
            raise ValueError(f"{elastic.title} has no experts: every token passes every layer")
        counts = routing_counts(elastic, windows_of(options, elastic, options.tokens, progress))
    rows = []
    for name, of in counts.items():
        shares = of / of.sum()
        rows.append((name, *(f"{share:.1%}" for share in shares.tolist())))
    most = max(len(of) for of in counts.values())
    print_table(("experts", *map(str, range(most))), rows)
    if options.json:
        print_json({name: of.tolist() for name, of in counts.items()})
