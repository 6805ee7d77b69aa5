"""What the commands share: options, opening a model, reading what a person types, printing."""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quept.plan import PlanError, PrecisionPlan
from quept.progress import Progress

if TYPE_CHECKING:
    from quept.evaluate import Windows
    from quept.runtime import ElasticModel

DEFAULT_MODEL, DEFAULT_TEXT = "smollm2-135m", "boolq-passages"
MODEL_HELP = (
    "built-in name (see `quept models`), artifact folder, model folder, GGUF file, or hub id like org/name"
)
_SHOWN = (
    {chr(code): chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"}
    | {chr(code): f"\\x{code:02x}" for code in range(128, 160)}
    | {chr(code): f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
    | {"\x7f": "␡"}
)
SCORES = {"ppl": "perplexity", "top1": "accuracy"}  # beside KL, of texts and of what a model sees
PLAN_HELP = "W4, W4A8, W4A8KV4E8, full, nf4 or int8 (bitsandbytes), the name of a preset, or a plan file"


def command(commands, name: str, run, help: str, example: str, more: str = "") -> argparse.ArgumentParser:
    description = help[0].upper() + help[1:] + "." + (f" {more}" if more else "")
    p = commands.add_parser(name, help=help, description=description, epilog=f"example: {example}")
    p.set_defaults(run=run)
    return p


def model_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", help=MODEL_HELP)
    p.add_argument("--device", metavar="DEVICE", help="cpu or cuda (default: cuda where there is one)")
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="to compute in (default: what the device does fastest)",
    )
    p.add_argument("--threads", type=threads, metavar="N", help="processor threads to use (default: all)")


def text_options(p: argparse.ArgumentParser, tokens: int | None, things: str = "of it") -> None:
    """tokens: how many unless given; with None `things` says that."""
    p.add_argument(
        "--text",
        default=DEFAULT_TEXT,
        metavar="TEXT",
        help=f"built-in text or a text file (default: {DEFAULT_TEXT})",
    )
    how_much = f"how much {things}" + (f" (default {tokens})" if tokens else "")
    p.add_argument("--tokens", type=count, default=tokens, metavar="N", help=how_much)
    p.add_argument("--context", type=count, default=512, metavar="N", help="tokens per window (default 512)")


def json_option(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true", help="also print one JSON object as the last line")


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def threads(text: str) -> int:
    """More than a few a processor gain nothing, and very many end the process without a word."""
    number, most = count(text), 4 * (os.cpu_count() or 1)
    if number > most:
        raise argparse.ArgumentTypeError(f"{number} threads are too many: at most {most} run here")
    return number


def visible(text: str) -> str:
    """A model's text for a terminal: control characters, which could move its cursor, retitle it or write on
    a clipboard, stand as ␛ and the like; so do marks that turn the direction of reading."""
    return "".join(_SHOWN.get(letter, letter) for letter in text)


def group(text: str) -> int | str:
    return text if text in ("row", "auto") else count(text)


def opened(options: argparse.Namespace, progress: Progress) -> ElasticModel:
    import torch

    from quept.runtime import ElasticModel

    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype) if getattr(options, "dtype", None) else None
    return ElasticModel.open(options.model, device=options.device, dtype=dtype, progress=progress)


def plan_of(text: str, elastic: ElasticModel) -> PrecisionPlan:
    """What a person types for a plan: W4 and the like or the name of a preset (`PrecisionPlan.keeping` says
    what they mean for a model that sees), the name of a plan on the model's front, or a file; PlanError if it
    does not fit the model."""
    from quept.presets import named, notes

    models = elastic.origin.models
    preset = named(text, models)
    plan = preset.keeping(elastic.layout.vision_layers) if preset else _on_the_front(text, elastic)
    if plan is None and Path(text).is_file():
        plan = PrecisionPlan.load(text, models)
    if plan is None:
        try:
            plan = PrecisionPlan.parse(text).keeping(elastic.layout.vision_layers)
        except PlanError as error:
            close = difflib.get_close_matches(text, notes(), n=1)
            raise PlanError(f"{error}; did you mean {close[0]!r}?" if close else str(error)) from None
    plan.resolve(elastic.layers)
    return plan


def _on_the_front(text: str, elastic: ElasticModel) -> PrecisionPlan | None:
    """The plan of this name on the front that lies beside the model, like "best 3.5 bits"."""
    from quept.allocate.front import fitting_front

    front = fitting_front(elastic.origin.beside("front.json"), elastic)
    return (
        next((replace(p.plan, name=p.name) for p in front.points if p.name == text), None) if front else None
    )


def windows_of(
    options: argparse.Namespace, elastic: ElasticModel, tokens: int, progress: Progress
) -> Windows:
    from quept.evaluate import Sample

    return Sample.read(options.text, tokens, options.context, progress).windows(elastic)


def name_of(source: str) -> str:
    """A built-in's name as it is; of a path or hub id, the last part: names travel in files, paths do not."""
    return Path(source).name


def short(x: float) -> str:
    return f"{x:.3g}" if abs(x) < 100 else f"{x:.0f}" if abs(x) < 1e5 else f"{x:.2g}"


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [tuple(head), *(tuple(map(visible, row)) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_json(data: dict) -> None:
    print(json.dumps(data))


def activations(text: str) -> int | str:
    """A width of every layer's inputs, or "as weights", as typed."""
    if text in ("as-weights", "as weights"):
        return "as weights"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r} is neither a number of bits nor "as-weights"')
    return int(text)
