"""`quept calibrate`: an artifact by a recipe."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quept.presets import recipes
from quept.progress import Progress

from .shared import DEFAULT_MODEL, command, group, json_option, print_json, print_table, short

if TYPE_CHECKING:
    from quept.config import Recipe

WORSE = 3  # exit code: the artifact is there, and at some width round-to-nearest is better


def calibrate_parser(commands) -> None:
    p = command(
        commands,
        "calibrate",
        _calibrate,
        "make an elastic artifact of a model: a folder from which every width can be had",
        f"quept calibrate {DEFAULT_MODEL} --recipe weight-only",
    )
    p.add_argument("model", help="built-in name (see `quept models`), model folder, GGUF file, or hub id")
    p.add_argument(
        "--recipe",
        default="rtn",
        metavar="NAME",
        help=f"{', '.join(recipes())}, or a TOML file; weight-only and weight-act mean the one made for "
        "the model; rtn rounds to nearest and learns nothing (default)",
    )
    p.add_argument(
        "--out",
        metavar="FOLDER",
        help="where the artifact goes, and what a run that was cut goes on from (default: runs/MODEL-RECIPE)",
    )
    p.add_argument(
        "--text",
        action="append",
        metavar="TEXT[=SHARE]",
        help="calibrate on this built-in text or text file instead of the recipe's; repeat for several",
    )
    p.add_argument(
        "--data",
        metavar="FOLDER",
        help="calibrate on the pictures in this folder instead of the recipe's: a classifier on the pictures "
        "alone, labels are not read; a vision-language model on what its pairs.json says about them, a list "
        'of {"image": FILE, "question": TEXT, "answer": TEXT}, {"image": FILE, "caption": TEXT} or '
        '{"image": FILE, "conversation": [{"role": "user" or "assistant", "content": TEXT}, ...]}; FILE may '
        "be a list",
    )
    p.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    p.add_argument(
        "--group",
        type=group,
        metavar="N",
        help="columns that share a scale: 32, 64, 128, row or auto (default: the recipe's or the model's)",
    )
    json_option(p)


def _calibrate(options: argparse.Namespace) -> int:
    from quept.calibrate import calibrate, calibrate_rtn, worse

    name = Path(options.recipe).stem
    out = options.out or Path("runs") / f"{Path(options.model).name}-{name}"
    with Progress() as progress:
        if options.recipe == "rtn":
            if options.text or options.data or options.device:
                raise ValueError(
                    "rtn reads no data and needs no device: leave --text, --data and --device out"
                )
            artifact = calibrate_rtn(options.model, out, options.group, progress)
        else:
            artifact = calibrate(options.model, _recipe(options), out, progress, options.device)
    m = artifact.manifest
    name, size = m.recipe.get("name", m.method), f"{artifact.nbytes / 1e6:.1f}"
    row = (str(out), name, str(m.group), str(len(m.layers)), size)
    print_table(("artifact", "recipe", "group", "layers", "MB"), [row])
    if m.quality:
        print("\nmean KL on calibration data that was held out")
        rows = [(plan, short(q["kl"]), short(q["kl_rtn"])) for plan, q in m.quality.items()]
        print_table(("plan", "calibrated", "round to nearest"), rows)
    if options.json:
        print_json(
            {
                "out": str(out),
                "method": m.method,
                "group": m.group,
                "fingerprint": m.fingerprint,
                "quality": m.quality,
                "bytes": artifact.nbytes,
            }
        )
    if lost := worse(m.quality):
        print(
            f"quept calibrate: WARNING: {', '.join(lost)} came out worse than round-to-nearest, and its "
            "transforms are shared by all widths: use `--recipe rtn` there, or a recipe without transforms",
            file=sys.stderr,
        )
    return WORSE if lost else 0


def _recipe(options: argparse.Namespace) -> Recipe:
    """The recipe that was named, with the texts, pictures or pairs and the group that were."""
    from quept.config import Recipe

    recipe = Recipe.load(options.recipe, options.model)
    if options.text:
        shares = (text.rpartition("=") if "=" in text else (text, "", "1") for text in options.text)
        recipe = recipe.at({source: _share(share) for source, _, share in shares}, "--text")
    if options.data:
        recipe = recipe.at(options.data)
    return replace(recipe, group=options.group) if options.group is not None else recipe


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"a share is a number, as in --text file.txt=2; got {text!r}") from None
