"""`quept models`, `quept pull` and `quept zoo train`: what is built in, having it in the cache, making it."""

from __future__ import annotations

import argparse
import importlib

from quept.progress import Progress

from .shared import DEFAULT_MODEL, DEFAULT_TEXT, command, count, json_option, print_json, print_table

TRAINERS = {"fashion-vit": "fashion_vit", "easy-vqa": "easy_vqa_llava"}  # model -> module of quept.zoo


def models_parser(commands) -> None:
    p = command(
        commands, "models", _models, "list the built-in models, texts and named plans", "quept models"
    )
    json_option(p)


def _models(options: argparse.Namespace) -> None:
    from quept import zoo
    from quept.presets import notes

    entries = [*zoo.MODELS.values(), *zoo.TEXTS.values()]
    kinds = ["model"] * len(zoo.MODELS) + ["text"] * len(zoo.TEXTS)
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
    unknown = [name for name in names if name not in zoo.MODELS and name not in zoo.TEXTS]
    if unknown:
        raise ValueError(
            f"nothing built in is called {unknown[0]!r}; there are {', '.join([*zoo.MODELS, *zoo.TEXTS])}"
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


def zoo_parser(commands) -> None:
    p = commands.add_parser(
        "zoo", help="train a built-in model anew", description="Train a built-in model anew."
    )
    train = command(
        p.add_subparsers(dest="action", required=True, metavar="ACTION"),
        "train",
        _train,
        "train a built-in model from its published data; goes on where it was cut",
        "quept zoo train fashion-vit --out runs/fashion-vit",
    )
    train.add_argument("name", choices=TRAINERS, help="which model")
    train.add_argument("--out", metavar="FOLDER", help="where it goes (default: runs/NAME)")
    train.add_argument("--data", metavar="FOLDER", help="the original data files (default: fetch them)")
    train.add_argument(
        "--epochs", type=count, metavar="N", help="passes over the data, in one cycle (default: the model's)"
    )
    json_option(train)


def _train(options: argparse.Namespace) -> None:
    trainer = importlib.import_module(f"quept.zoo.{TRAINERS[options.name]}")
    out = options.out or f"runs/{options.name}"
    settings = trainer.Settings(epochs=options.epochs) if options.epochs else None
    with Progress() as progress:
        found = trainer.train(out, settings, options.data, progress)
    print_table(("model", "test accuracy"), [(out, f"{100 * found:.2f} %")])
    if options.json:
        print_json({"out": out, "accuracy": found})
