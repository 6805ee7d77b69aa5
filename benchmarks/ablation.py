"""Which published part of QuEPT pays: a recipe with both stages, calibrated whole and with each part taken
out, and what is left of full precision's answers at every width.

    python benchmarks/ablation.py smollm2-135m --recipe two-stages --text wiki.test.raw.txt [--tokens 8192]
    python benchmarks/ablation.py fashion-vit --recipe two-stages

Every variant is an ordinary artifact in `--runs`, made there unless a run before finished it, so that a run
that was cut goes on, several processes can share the work (`--only`), and the last one prints the table.
"published" is block-wise reconstruction with shared ranks and token merging on untransformed weights; the
variants below it lack one part each. In "own ranks" every bit group has an adapter of its own, as many ranks
as it uses otherwise, learned alone: an artifact for each group. KL is the mean divergence from full precision
in float32, "rtn" that of rounding to nearest. Prints a table, then one JSON object: {VARIANT: {"w2", ...,
"minutes", "mb"}, "conditions"}.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from report import report

from quept import ElasticModel, PrecisionPlan, calibrate, evaluate
from quept.artifact import Artifact
from quept.config import Recipe
from quept.numerics.adapters import RankSchedule

WIDTHS = (8, 6, 4, 3, 2)
Settings = dict[str, Any]


def without(*parts: str) -> Callable[[Settings], Settings]:
    return lambda recipe: {key: value for key, value in recipe.items() if key not in parts}


def unmerged(recipe: Settings) -> Settings:
    """The next block reads what the highest group gives, for all tokens."""
    merge = [1.0] + [0.0] * (len(recipe["adapters"]["groups"]) - 1)
    return recipe | {"block_wise": recipe["block_wise"] | {"merge": merge, "keep": 1.0}}


def unclipped(recipe: Settings) -> Settings:
    return recipe | {"clip": {"start": {}}}


def unranked(recipe: Settings) -> Settings:
    return recipe | {"adapters": recipe["adapters"] | {"steps": [0] * len(recipe["adapters"]["steps"])}}


PUBLISHED = without("transforms", "end_to_end")
VARIANTS: Mapping[str, Callable[[Settings], Settings]] = {
    "published": PUBLISHED,
    "no merging": lambda recipe: unmerged(PUBLISHED(recipe)),
    "no clips": lambda recipe: unclipped(PUBLISHED(recipe)),
    "no ranks": lambda recipe: unranked(PUBLISHED(recipe)),
    "scales": without("end_to_end"),
    "end to end": without("transforms", "block_wise"),
    "scales, end to end": without("block_wise"),
    "block-wise, end to end": without("transforms"),
    "everything": without(),
}
OWN = "own ranks"


def own_ranks(recipe: Settings) -> dict[str, tuple[tuple[int, ...], Settings]]:
    """For each bit group that learns anything: its widths, and the recipe for it alone."""
    recipe = PUBLISHED(recipe)
    schedule = RankSchedule(
        tuple(map(tuple, recipe["adapters"]["groups"])), tuple(recipe["adapters"]["steps"])
    )
    alone = {}
    for i, (group, rate) in enumerate(
        zip(schedule.groups, recipe["block_wise"]["adapter_rates"], strict=True)
    ):
        ranks = schedule.ranks(group[0])
        start = {bits: logit for bits, logit in recipe["clip"]["start"].items() if int(bits) in group}
        if ranks or start:
            alone[f"{OWN} {i}"] = (
                group,
                recipe
                | {
                    "adapters": {"groups": [list(group)], "steps": [ranks]},
                    "clip": {"start": start},
                    "block_wise": recipe["block_wise"]
                    | {"adapter_rates": [rate], "merge": [1.0], "keep": 1.0},
                },
            )
    return alone


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--recipe", default="two-stages", help="one with both stages")
    parser.add_argument("--text", help="of a language model: the text that is measured on")
    parser.add_argument("--tokens", type=int, help="of that text, in windows of 512")
    parser.add_argument("--images", type=int, help="of a classifier: how many of its pictures")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="where the artifacts lie")
    parser.add_argument(
        "--only", action="append", help="make and measure this variant alone; repeat for several"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="ENTRY=NUMBER", help="as block_wise.epochs=1"
    )
    options = parser.parse_args()

    recipe = settings(options)
    alone = own_ranks(recipe)
    given = {key: getattr(options, key) for key in ("text", "tokens", "images") if getattr(options, key)}
    rows: dict[str, dict[str, float]] = {}
    if not options.only or "rtn" in options.only:
        plain = options.model if Path(options.model).is_dir() else f"{options.model}:rtn"
        rows["rtn"] = kls(open_float32(plain), WIDTHS, given)
    for name, change in VARIANTS.items():
        if not options.only or name in options.only:
            rows[name] = row(made(name, change(recipe), options), WIDTHS, given)
    if not options.only or OWN in options.only:
        parts = [row(made(name, part, options), of, given) for name, (of, part) in alone.items()]
        rows[OWN] = {key: value for part in parts for key, value in part.items()} | {
            sum_: round(sum(part[sum_] for part in parts), 3) for sum_ in ("minutes", "mb")
        }
    for name, found in rows.items():
        report(name, found)
    conditions = {"model": options.model, "recipe": recipe, "dtype": "float32", "device": device()} | given
    print(json.dumps(rows | {"conditions": conditions | {"text": Path(options.text or "").name}}))


def settings(options: argparse.Namespace) -> Settings:
    """The recipe as a table, with what `--set` says."""
    recipe = Recipe.load(options.recipe, options.model).to_dict()
    for entry, _, number in (text.partition("=") for text in options.set):
        table, _, key = entry.partition(".")
        recipe[table][key] = json.loads(number)
    return recipe


def made(name: str, recipe: Settings, options: argparse.Namespace) -> Path:
    """The folder of a variant's artifact, calibrated if it is not there."""
    out = options.runs / Path(options.model).name / name.replace(", ", "+").replace(" ", "-")
    if not Artifact.is_one(out):
        calibrate(options.model, Recipe.from_dict(recipe), out, device=device())
    return out


def row(folder: Path, widths: tuple[int, ...], given: Mapping[str, Any]) -> dict[str, float]:
    """KL at these widths, the minutes that calibration took and the artifact's megabytes."""
    elastic = open_float32(folder)
    lines = map(json.loads, (folder / "progress.jsonl").read_text("utf-8").splitlines())
    seconds = next(line["seconds_per_stage"] for line in lines if line["what"] == "done")
    spent = sum(s for stage, s in seconds.items() if stage != "comparing")
    return kls(elastic, widths, given) | {
        "minutes": round(spent / 60, 2),
        "mb": round(elastic.artifact.nbytes / 1e6, 2),
    }


def kls(elastic: ElasticModel, widths: tuple[int, ...], given: Mapping[str, Any]) -> dict[str, float]:
    found = {
        bits: evaluate(elastic, PrecisionPlan.uniform(bits), **given)["kl"].value
        for bits in WIDTHS
        if bits in widths
    }
    return {f"w{bits}": float(f"{kl:.4g}") for bits, kl in found.items()}


def open_float32(source: str | Path) -> ElasticModel:
    return ElasticModel.open(source, dtype=torch.float32)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
