"""The command line: one subcommand per stage, in the order of the flow.

    quept models | pull | plan-run | calibrate | report | evaluate | results | routing | sensitivity
    quept allocate | front | rules | export | generate | run | app

Each is declared and run in the file of its name (models and pull: zoo; plan_run); shared: what they have in
common; terminal: output where characters are missing. Results go to stdout, as a small table or, with --json,
with one JSON object as the last line; progress and errors go to stderr. Exit code 0: done; 1: it could not be
done; 2: what was typed makes no sense; 130: stopped; 70: a bug of ours, with a file to report; of `calibrate`
also 3: done, and worse than round-to-nearest at some width. Every error is one sentence.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from quept.brief import brief

from .allocate import allocate_parser
from .calibrate import calibrate_parser
from .evaluate import evaluate_parser
from .export import export_parser
from .front import front_parser
from .generate import generate_parser
from .plan_run import plan_run_parser
from .report import report_parser
from .results import results_parser
from .routing import routing_parser
from .rules import rules_parser
from .run import run_parser
from .sensitivity import sensitivity_parser
from .shared import DEFAULT_MODEL, visible
from .terminal import forgiving
from .zoo import models_parser, pull_parser

BUG = 70  # as sysexits.h has it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    forgiving()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["app"]:
        return _app(argv[1:])
    options = parser().parse_args(argv)
    _quiet_libraries()
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        return _failed(options.command, "stopped", 130)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError as error:
        return _failed(options.command, error, 2)
    except (RuntimeError, OSError) as error:
        return _failed(options.command, error, 1)
    except Exception as error:
        return _bug(options.command, error)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        super().error(visible(brief(message)))


def parser() -> argparse.ArgumentParser:
    """All commands with their help; importing and building it loads no model library."""
    p = _Parser(
        prog="quept",
        description="Load one model once, run it at any precision, see what each bit costs.",
        epilog=f"Begin with `quept app` or `quept evaluate {DEFAULT_MODEL}`. `quept COMMAND --help` helps.",
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    models_parser(commands)
    pull_parser(commands)
    plan_run_parser(commands)
    calibrate_parser(commands)
    report_parser(commands)
    evaluate_parser(commands)
    results_parser(commands)
    routing_parser(commands)
    sensitivity_parser(commands)
    allocate_parser(commands)
    front_parser(commands)
    rules_parser(commands)
    export_parser(commands)
    generate_parser(commands)
    run_parser(commands)
    commands.add_parser("app", help="open the explorer in a browser (`quept app --help`)", add_help=False)
    return p


def _app(argv: Sequence[str]) -> int:
    try:
        from app.main import main as serve
    except ModuleNotFoundError as error:
        return _failed(
            "app", f"the app is not installed here ({error.name} is missing); run it from the repository", 1
        )
    return serve(argv)


# What the commands share.


def _failed(command: str, error: object, code: int) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"quept {command}: {visible(brief(text))}", file=sys.stderr)
    return code


def _bug(command: str, error: Exception) -> int:
    """What nobody thought of: said as such, with what a report needs in a file."""
    trace = "".join(traceback.format_exception(error))
    try:
        handle, report = tempfile.mkstemp(prefix="quept-bug-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(f"quept {' '.join(sys.argv[1:])}\nPython {sys.version}\n\n{trace}")
        where = f"with {report}, which says what happened and names files of yours"
    except OSError:
        where = f"and say: {type(error).__name__} at {trace.splitlines()[-3].strip()}"
    return _failed(command, f"this is a bug of quept: report it where you got quept from, {where}", BUG)


def _quiet_libraries() -> None:
    """Our own progress line is enough."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
