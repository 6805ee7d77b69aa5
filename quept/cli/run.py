"""`quept run`: an exported GGUF file in llama.cpp, in this process."""

from __future__ import annotations

import argparse
import os
import sys

from .shared import command, count, json_option, print_json, threads, visible


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
    megabytes = os.path.getsize(options.file) / 1e6
    print(
        f"llama.cpp: {megabytes:.1f} MB, writes {speed.write:.1f} tokens/s behind {speed.prompt} tokens, "
        f"reads {speed.read:.0f} tokens/s, {speed.threads} threads",
        file=sys.stderr,
    )
    if options.json:
        print_json(
            {
                "text": "".join(pieces),
                "bytes": os.path.getsize(options.file),
                "tokens_per_s": speed.write,
                "prompt_tokens_per_s": speed.read,
                "prompt_tokens": speed.prompt,
                "tokens": speed.answer,
                "threads": speed.threads,
            }
        )
