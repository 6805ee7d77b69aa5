"""The command line: one subcommand per stage, in the order of the flow.

    quept models | pull | calibrate | report | evaluate | sensitivity | export | generate | app

Results go to stdout, as a small table or, with --json, with one JSON object as the last line; progress and
errors go to stderr. Exit code 0: done; 1: it could not be done; 2: what was typed makes no sense; 130:
stopped. Every error is one sentence.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quept.plan import FULL, PlanError, PrecisionPlan
from quept.presets import recipes
from quept.progress import Progress
from quept.report.command import report_parser

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

    from quept.config import Recipe
    from quept.evaluate import ResultKey, Windows
    from quept.runtime import ElasticModel

DEFAULT_MODEL, DEFAULT_TEXT = "smollm2-135m", "boolq-passages"
MODEL_HELP = "built-in name (see `quept models`), artifact folder, model folder, or hub id like org/name"
PLAN_HELP = "W4, W4A8, W4A8KV4, full, the name of a preset, or a plan file"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["app"]:
        return _app(argv[1:])
    options = parser().parse_args(argv)
    _quiet_libraries()
    try:
        options.run(options)
    except KeyboardInterrupt:
        return _failed(options.command, "stopped", 130)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError as error:
        return _failed(options.command, error, 2)
    except (RuntimeError, OSError) as error:
        return _failed(options.command, error, 1)
    return 0


def parser() -> argparse.ArgumentParser:
    """All commands with their help; importing and building it loads no model library."""
    p = argparse.ArgumentParser(
        prog="quept",
        description="Load one model once, run it at any precision, see what each bit costs.",
        epilog=f"Begin with `quept app` or `quept evaluate {DEFAULT_MODEL}`. `quept COMMAND --help` helps.",
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _models_parser(commands)
    _pull_parser(commands)
    _calibrate_parser(commands)
    report_parser(commands)
    _evaluate_parser(commands)
    _sensitivity_parser(commands)
    _export_parser(commands)
    _generate_parser(commands)
    commands.add_parser("app", help="open the explorer in a browser (`quept app --help`)", add_help=False)
    return p


# Subcommands: each a function that declares its options and one that runs it.


def _models_parser(commands) -> None:
    p = _command(
        commands, "models", _models, "list the built-in models, texts and named plans", "quept models"
    )
    _json_option(p)


def _models(options: argparse.Namespace) -> None:
    from quept import zoo
    from quept.presets import notes

    entries = [*zoo.MODELS.values(), *zoo.TEXTS.values()]
    kinds = ["model"] * len(zoo.MODELS) + ["text"] * len(zoo.TEXTS)
    rows = [
        (entry.name, kind, entry.title, entry.licence) for entry, kind in zip(entries, kinds, strict=True)
    ]
    _table(("name", "kind", "title", "licence"), rows)
    if notes():
        print()
        _table(("named plan", "what it is for"), notes().items())
    if options.json:
        described = [
            {"name": e.name, "kind": kind, "title": e.title, "licence": e.licence, "provenance": e.provenance}
            for e, kind in zip(entries, kinds, strict=True)
        ]
        _json({"entries": described, "plans": notes()})


def _pull_parser(commands) -> None:
    p = _command(
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
    _json_option(p)


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
    _table(("name", "MB"), [(name, f"{size:.1f}") for name, size in rows])
    if options.json:
        _json({"pulled": [{"name": name, "megabytes": round(size, 1)} for name, size in rows]})


def _calibrate_parser(commands) -> None:
    p = _command(
        commands,
        "calibrate",
        _calibrate,
        "make an elastic artifact of a model: a folder from which every width can be had",
        f"quept calibrate {DEFAULT_MODEL} --recipe weight-only",
    )
    p.add_argument("model", help="built-in name (see `quept models`), model folder, or hub id like org/name")
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
    p.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    p.add_argument(
        "--group",
        type=_group,
        metavar="N",
        help="columns that share a scale: 32, 64, 128, row or auto (default: the recipe's or the model's)",
    )
    _json_option(p)


def _calibrate(options: argparse.Namespace) -> None:
    from quept.calibrate import calibrate, calibrate_rtn

    name = Path(options.recipe).stem
    out = options.out or Path("runs") / f"{Path(options.model).name}-{name}"
    with Progress() as progress:
        if options.recipe == "rtn":
            if options.text or options.device:
                raise ValueError("rtn reads no text and needs no device: leave --text and --device out")
            artifact = calibrate_rtn(options.model, out, options.group, progress)
        else:
            artifact = calibrate(options.model, _recipe(options), out, progress, options.device)
    m = artifact.manifest
    name, size = m.recipe.get("name", m.method), f"{artifact.nbytes / 1e6:.1f}"
    row = (str(out), name, str(m.group), str(len(m.layers)), size)
    _table(("artifact", "recipe", "group", "layers", "MB"), [row])
    if m.quality:
        print("\nmean KL on calibration text that was held out")
        rows = [(plan, _short(q["kl"]), _short(q["kl_rtn"])) for plan, q in m.quality.items()]
        _table(("plan", "calibrated", "round to nearest"), rows)
    if options.json:
        _json(
            {
                "out": str(out),
                "method": m.method,
                "group": m.group,
                "fingerprint": m.fingerprint,
                "quality": m.quality,
                "bytes": artifact.nbytes,
            }
        )


def _recipe(options: argparse.Namespace) -> Recipe:
    """The recipe that was named, with the texts and the group that were."""
    from quept.config import Recipe

    recipe = Recipe.load(options.recipe, options.model)
    if options.text:
        shares = (text.rpartition("=") if "=" in text else (text, "", "1") for text in options.text)
        recipe = recipe.with_text({source: _share(share) for source, _, share in shares})
    return replace(recipe, group=options.group) if options.group is not None else recipe


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"a share is a number, as in --text file.txt=2; got {text!r}") from None


def _evaluate_parser(commands) -> None:
    p = _command(
        commands,
        "evaluate",
        _evaluate,
        "measure perplexity, divergence from full precision and size of one or more plans",
        f"quept evaluate {DEFAULT_MODEL} --plan W4 --plan protect-edges --json",
    )
    _model_options(p)
    p.add_argument(
        "--plan", action="append", metavar="PLAN", help=f"{PLAN_HELP}; repeat for several (default: W4)"
    )
    p.add_argument(
        "--presets", action="store_true", help="also full, W8 ... W2 and every named plan that fits the model"
    )
    p.add_argument(
        "--baseline",
        action="append",
        metavar="NAME",
        default=[],
        help="another tool's quantisation of the same model: nf4 or int8 of bitsandbytes; repeat for several",
    )
    _text_options(p, tokens=4096)
    p.add_argument("--again", action="store_true", help="measure even what the results store holds already")
    p.add_argument(
        "--export-results",
        metavar="FILE",
        help="also write the results to a file that the app reads at its start",
    )
    _json_option(p)


def _evaluate(options: argparse.Namespace) -> None:
    from quept import zoo
    from quept.evaluate import Reference, Results

    with Progress() as progress:
        elastic = _open(options, progress)
        plans = _plans(options, elastic)
        windows = _windows(options, elastic, options.tokens, progress)
        cache = zoo.cache_dir()
        results = Results.open(cache / "results.sqlite")
        reference = Reference.open(elastic.fingerprint, windows, elastic.reference, cache / "reference")
        subjects = [_plan_subject(elastic, plan, windows) for plan in plans]
        subjects += [_baseline_subject(elastic, name, windows) for name in options.baseline]
        measured = [
            _measured(elastic, subject, windows, reference, results, options.again, progress)
            for subject in subjects
        ]
    conditions = _conditions(options, elastic, windows)
    if not plans:
        conditions = {k: v for k, v in conditions.items() if k not in ("method", "group")}  # those of ours
    if options.baseline:
        conditions["bitsandbytes"] = importlib.metadata.version("bitsandbytes")
    print(_sentence(conditions))
    _table(
        ("plan", "bits/param", "MB", "perplexity", "KL", "same top"),
        [(m.subject.name or "plan", *_figures(m)) for m in measured],
    )
    if options.export_results:
        from quept.evaluate.shipped import write_shipped

        rows = [(m.subject.name, m.subject.key, m.estimate) for m in measured]
        write_shipped(options.export_results, rows, **conditions)
    if options.json:
        _json(conditions | {"results": [m.as_dict() for m in measured]})


@dataclass(frozen=True)
class Subject:
    """What is measured: a plan or a baseline, its size, and how to get its view and its KV cache."""

    name: str
    key: ResultKey
    deploy_bytes: int
    view: Callable[[], PreTrainedModel]
    make_cache: Callable[[], Cache] | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured of a subject (an Estimate as a dict)."""

    subject: Subject
    bits_per_parameter: float
    estimate: dict[str, float]

    def as_dict(self) -> dict:
        subject = self.subject
        sizes = {
            "deploy_bytes": subject.deploy_bytes,
            "bits_per_parameter": round(self.bits_per_parameter, 4),
        }
        return {"plan": subject.name, "key": subject.key.plan} | sizes | self.estimate


def _plan_subject(elastic: ElasticModel, plan: PrecisionPlan, windows: Windows) -> Subject:
    from quept.evaluate import ResultKey

    key = ResultKey(plan.key(elastic.layers), elastic.artifact.identity, windows.id, _dtype(elastic))
    cache = None if plan.kv == FULL else lambda: elastic.make_cache(plan)
    return Subject(plan.name, key, elastic.sizes.deploy(plan), lambda: elastic.view(plan), cache)


def _baseline_subject(elastic: ElasticModel, name: str, windows: Windows) -> Subject:
    """Its key names the base weights: how ours are quantised does not matter to it."""
    from quept.evaluate import ResultKey
    from quept.runtime.baselines import baseline_named, check_available

    baseline = baseline_named(name)
    check_available(baseline)
    key = ResultKey(baseline.key, elastic.fingerprint, windows.id, _dtype(elastic))
    return Subject(baseline.title, key, elastic.baseline_bytes(name), lambda: elastic.baseline(name))


def _measured(
    elastic, subject: Subject, windows, reference, results, again: bool, progress: Progress
) -> Measured:
    """From the results store where it is there, else measured now and stored."""
    from quept.evaluate import divergence

    stored = None if again else results.get(subject.key)
    if stored:
        estimate = stored.payload
    else:
        progress(f"{subject.name}: preparing the weights", 0.0)
        for running in divergence(subject.view(), reference, windows, make_cache=subject.make_cache):
            progress(
                f"{subject.name}: perplexity {running.ppl:.1f}, KL {running.kl:.4f}",
                running.tokens / windows.scored,
            )
            estimate = running.to_dict()
        results.put(subject.key, estimate)
    return Measured(subject, 8 * subject.deploy_bytes / elastic.sizes.parameters, estimate)


def _figures(m: Measured) -> tuple[str, ...]:
    e = m.estimate
    return (
        f"{m.bits_per_parameter:.2f}",
        f"{m.subject.deploy_bytes / 1e6:.1f}",
        f"{_short(e['ppl'])} ± {_short(e['ppl_se'])}",
        f"{_short(e['kl'])} ± {_short(e['kl_se'])}",
        f"{100 * e['same_top']:.1f} ± {100 * e['same_top_se']:.1f} %",
    )


def _sensitivity_parser(commands) -> None:
    p = _command(
        commands,
        "sensitivity",
        _sensitivity,
        "measure what each layer's rounding costs by itself: the table behind predicted quality",
        f"quept sensitivity {DEFAULT_MODEL} --tokens 512 --out smollm2-sensitivity.json",
        "It takes long: 7 passes a layer. A stopped run goes on from FILE.progress.jsonl when started again.",
    )
    _model_options(p)
    _text_options(p, tokens=1024)
    p.add_argument(
        "--curve-tokens",
        type=_count,
        default=4096,
        metavar="N",
        help="tokens for whole uniform plans (default 4096)",
    )
    p.add_argument(
        "--per",
        choices=("layer", "block"),
        default="layer",
        help="change one layer (default) or one block at a time",
    )
    p.add_argument("--out", required=True, metavar="FILE", help="the table, as JSON")
    _json_option(p)


def _sensitivity(options: argparse.Namespace) -> None:
    from quept import zoo
    from quept.allocate import sensitivity
    from quept.evaluate import Reference

    out, lines = Path(options.out), Path(f"{options.out}.progress.jsonl")
    options.dtype = options.dtype or "float32"
    with Progress() as progress:
        elastic = _open(options, progress)
        windows = _windows(options, elastic, options.tokens, progress)
        whole = _windows(options, elastic, options.curve_tokens, progress)
        reference = Reference.open(
            elastic.fingerprint, whole, elastic.reference, zoo.cache_dir() / "reference"
        )
        table = sensitivity(
            elastic,
            windows,
            reference,
            per=options.per,
            model=_name(options.model),
            text=_name(options.text),
            progress=progress,
            resume=lines,
        )
    table.save(out)
    lines.unlink()
    print(f"{out}: {table.conditions}")
    _table(
        ("width", "sum of sensitivities", "KL, measured whole", "perplexity"),
        [
            (
                f"W{bits}",
                _short(table.total(PrecisionPlan.uniform(bits))),
                _short(row["kl"]),
                _short(row["ppl"]),
            )
            for bits, row in sorted(table.uniform.items(), reverse=True)
        ],
    )
    if options.json:
        _json(
            {
                "out": str(out),
                "model": table.model,
                "layers": len(table.layers),
                "conditions": table.conditions,
            }
        )


def _export_parser(commands) -> None:
    p = _command(
        commands,
        "export",
        _export,
        "write the packed weights of one plan to a safetensors file",
        f"quept export {DEFAULT_MODEL} --plan W4 --out smollm2-w4.safetensors",
    )
    _model_options(p)
    p.add_argument("--plan", default="W4", help=f"{PLAN_HELP} (default: W4)")
    p.add_argument("--out", required=True, metavar="FILE", help="the safetensors file")
    _json_option(p)


def _export(options: argparse.Namespace) -> None:
    from quept.export import export

    with Progress() as progress:
        elastic = _open(options, progress)
        plan = plan_of(options.plan, elastic)
        progress("writing and reading back", None)
        packed = export(elastic, plan, options.out)
    bits = elastic.sizes.bits_per_parameter(plan)
    row = (str(options.out), plan.name, f"{packed.nbytes / 1e6:.1f}", f"{bits:.2f}")
    _table(("file", "plan", "MB of tensors", "bits/param"), [row])
    if options.json:
        _json(
            {
                "out": str(options.out),
                "plan": plan.name,
                "tensor_bytes": packed.nbytes,
                "bits_per_parameter": bits,
            }
        )


def _generate_parser(commands) -> None:
    p = _command(
        commands,
        "generate",
        _generate,
        "answer a prompt at some precision, as it is written",
        f'quept generate {DEFAULT_MODEL} --plan W4 "What is the capital of France?"',
    )
    _model_options(p)
    p.add_argument("prompt", help="what to say to the model; - reads it from stdin")
    p.add_argument("--plan", default="full", help=f"{PLAN_HELP} (default: full)")
    p.add_argument("--system", help="a system prompt instead of the model's own")
    p.add_argument(
        "--temperature", type=float, default=0.7, help="0 always takes the likeliest token (default 0.7)"
    )
    p.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        help="sample from the likeliest tokens of this total probability (default 0.95)",
    )
    p.add_argument("--max-tokens", type=_count, default=256, help="stop after this many (default 256)")
    p.add_argument("--seed", type=int, default=0, help="same seed, same answer (default 0)")
    _json_option(p)


def _generate(options: argparse.Namespace) -> None:
    from quept.runtime import Sampling, stream

    sampling = Sampling(options.temperature, options.top_p, options.max_tokens, options.seed)
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    with Progress() as progress:
        elastic = _open(options, progress)
        plan = plan_of(options.plan, elastic)
        progress("preparing the weights", None)
        view = elastic.view(plan)
    messages = [{"role": "user", "content": prompt}]
    answer = stream(
        view, elastic.tokenizer, messages, sampling, lambda: elastic.make_cache(plan), system=options.system
    )
    pieces = []
    for event in answer:
        pieces.append(event.text)
        print(event.text, end="", flush=True)
    print()
    stats = answer.stats
    rate = stats.tokens_per_second
    speed = f", {rate:.1f} tokens/s" if rate else ""
    print(f"{plan.name}: {stats.tokens} tokens{speed}", file=sys.stderr)
    if options.json:
        _json({"plan": plan.name, "text": "".join(pieces), "tokens": stats.tokens, "tokens_per_s": rate})


def _app(argv: Sequence[str]) -> int:
    try:
        from app.main import main as serve
    except ModuleNotFoundError as error:
        return _failed(
            "app", f"the app is not installed here ({error.name} is missing); run it from the repository", 1
        )
    return serve(argv)


# What the commands share.


def _command(commands, name: str, run, help: str, example: str, more: str = "") -> argparse.ArgumentParser:
    description = help[0].upper() + help[1:] + "." + (f" {more}" if more else "")
    p = commands.add_parser(name, help=help, description=description, epilog=f"example: {example}")
    p.set_defaults(run=run)
    return p


def _model_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", help=MODEL_HELP)
    p.add_argument("--device", metavar="DEVICE", help="cpu or cuda (default: cuda where there is one)")
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="to compute in (default: what the device does fastest)",
    )
    p.add_argument("--threads", type=_count, metavar="N", help="processor threads to use (default: all)")


def _text_options(p: argparse.ArgumentParser, tokens: int) -> None:
    p.add_argument(
        "--text",
        default=DEFAULT_TEXT,
        metavar="TEXT",
        help=f"built-in text or a text file (default: {DEFAULT_TEXT})",
    )
    p.add_argument(
        "--tokens", type=_count, default=tokens, metavar="N", help=f"how much of it (default {tokens})"
    )
    p.add_argument("--context", type=_count, default=512, metavar="N", help="tokens per window (default 512)")


def _json_option(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true", help="also print one JSON object as the last line")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _group(text: str) -> int | str:
    return text if text in ("row", "auto") else _count(text)


def _open(options: argparse.Namespace, progress: Progress) -> ElasticModel:
    import torch

    from quept.runtime import ElasticModel

    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype) if getattr(options, "dtype", None) else None
    return ElasticModel.open(options.model, device=options.device, dtype=dtype, progress=progress)


def plan_of(text: str, elastic: ElasticModel) -> PrecisionPlan:
    """What a person types for a plan: W4 and the like, the name of a preset, or a file; PlanError if it does
    not fit the model."""
    from quept.presets import named, notes

    model = _name(elastic.source)
    plan = named(text, model)
    if plan is None and Path(text).is_file():
        plan = PrecisionPlan.load(text, model)
    if plan is None:
        try:
            plan = PrecisionPlan.parse(text)
        except PlanError as error:
            close = difflib.get_close_matches(text, notes(), n=1)
            raise PlanError(f"{error}; did you mean {close[0]!r}?" if close else str(error)) from None
    plan.resolve(elastic.layers)
    return plan


def _plans(options: argparse.Namespace, elastic: ElasticModel) -> list[PrecisionPlan]:
    from quept.plan import QUANTISED_BITS
    from quept.presets import presets

    others = options.presets or options.baseline
    plans = [plan_of(text, elastic) for text in options.plan or ([] if others else ["W4"])]
    if options.presets:
        plans += [PrecisionPlan.full(), *(PrecisionPlan.uniform(bits) for bits in reversed(QUANTISED_BITS))]
        plans += presets(_name(elastic.source), elastic.layers)
    return list({plan.key(elastic.layers): plan for plan in plans}.values())


def _windows(options: argparse.Namespace, elastic: ElasticModel, tokens: int, progress: Progress) -> Windows:
    from quept import zoo
    from quept.evaluate import cut

    if options.text in zoo.TEXTS:
        text = zoo.text(options.text, progress)
    elif Path(options.text).is_file():
        text = Path(options.text).read_text("utf-8", errors="replace")
    else:
        raise ValueError(f"no text {options.text!r}: give {', '.join(zoo.TEXTS)}, or the path of a text file")
    return cut(text, elastic.tokenizer, options.context, tokens)


def _conditions(options: argparse.Namespace, elastic: ElasticModel, windows: Windows) -> dict:
    return {
        "name": _name(options.model),
        "title": elastic.title,
        "method": elastic.artifact.manifest.method,
        "group": elastic.artifact.group,
        "text": _name(options.text),
        "tokens": windows.ids.numel(),
        "context": windows.context,
        "device": elastic.device.type,
        "dtype": _dtype(elastic),
    }


def _sentence(c: dict) -> str:
    ours = f"{c['method']}, group {c['group']}, " if "method" in c else ""
    return (
        f"{c['title']}, {ours}on {c['tokens']:,} tokens of {c['text']}, "
        f"context {c['context']}, {c['dtype']} on {c['device']}"
    )


def _dtype(elastic: ElasticModel) -> str:
    return str(elastic.dtype).removeprefix("torch.")


def _name(source: str) -> str:
    """A built-in's name as it is; of a path or hub id, the last part: names travel in files, paths do not."""
    return Path(source).name


def _short(x: float) -> str:
    return f"{x:.3g}" if abs(x) < 100 else f"{x:.0f}" if abs(x) < 1e5 else f"{x:.2g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _json(data: dict) -> None:
    print(json.dumps(data))


def _failed(command: str, error: object, code: int) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"quept {command}: {text}", file=sys.stderr)
    return code


def _quiet_libraries() -> None:
    """Our own progress line is enough."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
