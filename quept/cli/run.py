"""`quept run`: an exported GGUF file in llama.cpp, in this process."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from quept.progress import Progress

from .shared import DEFAULT_TEXT, command, count, json_option, print_json, short, threads, visible

if TYPE_CHECKING:
    from quept.export.gguf.agreement import Agreement
    from quept.export.gguf.llama_cpp import LlamaCpp

TOKENS = 128  # of the text


def run_parser(commands) -> None:
    p = command(
        commands,
        "run",
        _run,
        "answer with llama.cpp from a GGUF file, and say how fast",
        'quept run smollm2-w4.gguf "Why is the sky blue?"',
        "Takes the package xllamacpp. Without a prompt, speed alone is measured.",
    )
    p.add_argument("file", help="a GGUF file, as quept export --to gguf writes it")
    p.add_argument("prompt", nargs="?", help="what to say to the model; - reads it from stdin")
    p.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
    p.add_argument("--max-tokens", type=count, default=256, help="stop after this many (default 256)")
    p.add_argument("--context", type=count, default=2048, metavar="N", help="tokens it holds (default 2048)")
    p.add_argument("--threads", type=threads, metavar="N", help="processor threads to use (default: all)")
    p.add_argument(
        "--against",
        metavar="MODEL",
        help="the model that the file was exported from: also say how far llama.cpp is from the plan's view",
    )
    p.add_argument("--text", default=DEFAULT_TEXT, metavar="TEXT", help="on which (built-in text or a file)")
    json_option(p)


def _run(options: argparse.Namespace) -> None:
    from quept.export.gguf.llama_cpp import LlamaCpp

    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    pieces: list[str] = []
    with LlamaCpp(options.file, options.context, options.threads or os.cpu_count()) as llama:
        if prompt:
            talk = [{"role": "user", "content": prompt}]
            for piece in llama.answer(talk, options.max_tokens, temperature=options.temperature):
                pieces.append(piece)
                print(visible(piece), end="", flush=True)
            print()
        speed = llama.speed()
        agrees = _against(llama, options) if options.against else None
    megabytes = os.path.getsize(options.file) / 1e6
    print(
        f"llama.cpp: {megabytes:.1f} MB, writes {speed.write:.1f} tokens/s behind {speed.prompt} tokens, "
        f"reads {speed.read:.0f} tokens/s, {speed.threads} threads",
        file=sys.stderr,
    )
    if agrees:
        print(
            f"against the view: KL {short(agrees.kl)}, the same likeliest token at {agrees.same_top:.0%} of "
            f"{agrees.positions} positions; 8-bit activations, which llama.cpp has, cost "
            f"{short(agrees.kl_a8)} in the view",
            file=sys.stderr,
        )
    if options.json:
        print_json(
            (asdict(agrees) if agrees else {})
            | {
                "text": "".join(pieces),
                "bytes": os.path.getsize(options.file),
                "tokens_per_s": speed.write,
                "prompt_tokens_per_s": speed.read,
                "prompt_tokens": speed.prompt,
                "tokens": speed.answer,
                "threads": speed.threads,
            }
        )


def _against(llama: LlamaCpp, options: argparse.Namespace) -> Agreement:
    """How the file agrees with the view of the plan that stands in it."""
    import gguf

    from quept.evaluate import Sample
    from quept.export.gguf.agreement import agreement
    from quept.plan import PrecisionPlan
    from quept.runtime import ElasticModel

    reader = gguf.GGUFReader(options.file)
    said = [reader.get_field(f"quept.{name}") for name in ("plan", "fingerprint")]
    with Progress() as progress:
        elastic = ElasticModel.open(options.against, progress=progress)
        if None in said or said[1].contents() != elastic.fingerprint:
            raise ValueError(f"{options.file} was not exported from {options.against}: leave --against out")
        tokens = min(TOKENS, llama.context // 2)
        ids = Sample.read(options.text, tokens, tokens, progress).windows(elastic).ids[0]
        return agreement(elastic, PrecisionPlan.from_json(said[0].contents()), llama, ids, progress=progress)
