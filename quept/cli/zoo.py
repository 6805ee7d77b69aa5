"""`quept models` and `quept pull`: what is built in, and having it in the cache."""

from __future__ import annotations

import argparse

from quept.progress import Progress

from .shared import DEFAULT_MODEL, DEFAULT_TEXT, command, json_option, print_json, print_table


def models_parser(commands) -> None:
    p = command(
        commands,
        "models",
        _models,
        "list the built-in models, texts, questions and named plans",
        "quept models",
    )
    json_option(p)


def _models(options: argparse.Namespace) -> None:
    from quept import zoo
    from quept.presets import notes

    tables = {"model": zoo.MODELS, "text": zoo.TEXTS, "questions": zoo.CHOICES}
    entries = [entry for table in tables.values() for entry in table.values()]
    kinds = [kind for kind, table in tables.items() for _ in table]
    rows = [
        (entry.name, kind, entry.title, entry.licence) for entry, kind in zip(entries, kinds, strict=True)
    ]
    print_table(("name", "kind", "title", "licence"), rows)
    if notes():
        print()
        print_table(("named plan", "what it is for"), notes().items())
    if options.json:
        described = [
            {"name": e.name, "kind": kind, "title": e.title, "licence": e.licence, "provenance": e.provenance}
            for e, kind in zip(entries, kinds, strict=True)
        ]
        print_json({"entries": described, "plans": notes()})


def pull_parser(commands) -> None:
    p = command(
        commands,
        "pull",
        _pull,
        "fetch a built-in model or text into the cache, so that later runs need no network",
        f"quept pull {DEFAULT_MODEL} {DEFAULT_TEXT}",
    )
    p.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"built-in models and texts (default: {DEFAULT_MODEL} {DEFAULT_TEXT})",
    )
    p.add_argument(
        "--verify", action="store_true", help="also compare the contents of models that are there already"
    )
    json_option(p)


def _pull(options: argparse.Namespace) -> None:
    from quept import zoo

    names = options.names or [DEFAULT_MODEL, DEFAULT_TEXT]
    passages = [name for name, entry in zoo.TEXTS.items() if not entry.chats]
    unknown = [name for name in names if name not in zoo.MODELS and name not in passages]
    if unknown:
        raise ValueError(
            f"nothing built in is called {unknown[0]!r}; there are {', '.join([*zoo.MODELS, *passages])}"
        )
    rows = []
    with Progress() as progress:
        for name in names:
            if name in zoo.MODELS:
                folder = zoo.model_folder(name, progress, verify=options.verify)
                rows.append((name, sum(f.stat().st_size for f in folder.iterdir()) / 1e6))
            else:
                rows.append((name, len(zoo.text(name, progress).encode()) / 1e6))
    print_table(("name", "MB"), [(name, f"{size:.1f}") for name, size in rows])
    if options.json:
        print_json({"pulled": [{"name": name, "megabytes": round(size, 1)} for name, size in rows]})
