"""`quept generate`: an answer at some precision."""

from __future__ import annotations

import argparse
import sys

from quept.progress import Progress

from .shared import (
    DEFAULT_MODEL,
    PLAN_HELP,
    command,
    count,
    json_option,
    model_options,
    opened,
    plan_of,
    print_json,
    visible,
)


def generate_parser(commands) -> None:
    p = command(
        commands,
        "generate",
        _generate,
        "answer a prompt at some precision, as it is written",
        f'quept generate {DEFAULT_MODEL} --plan W4 "What is the capital of France?"',
    )
    model_options(p)
    p.add_argument("prompt", help="what to say to the model; - reads it from stdin")
    p.add_argument("--plan", default="full", help=f"{PLAN_HELP} (default: full)")
    p.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture that the prompt is about, for a vision-language model; repeat for several",
    )
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
    p.add_argument("--max-tokens", type=count, default=256, help="stop after this many (default 256)")
    p.add_argument("--seed", type=int, default=0, help="same seed, same answer (default 0)")
    json_option(p)


def _generate(options: argparse.Namespace) -> None:
    from quept.data.images import read_picture
    from quept.runtime import Sampling

    sampling = Sampling(options.temperature, options.top_p, options.max_tokens, options.seed)
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    with Progress() as progress:
        pictures = [read_picture(path) for path in options.image]
        elastic = opened(options, progress)
        if pictures and elastic.processor is None:
            raise ValueError(f"{elastic.title} reads no pictures: leave --image out")
        plan = plan_of(options.plan, elastic)
        progress("preparing the weights", None)
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content if pictures else prompt}]
        answer = elastic.stream(plan, messages, sampling, system=options.system, pictures=pictures)
    pieces = []
    for event in answer:
        pieces.append(event.text)
        print(visible(event.text), end="", flush=True)
    print()
    stats = answer.stats
    rate = stats.tokens_per_second
    speed = f", {rate:.1f} tokens/s" if rate else ""
    print(f"{plan.name}: {stats.tokens} tokens{speed}", file=sys.stderr)
    if options.json:
        print_json({"plan": plan.name, "text": "".join(pieces), "tokens": stats.tokens, "tokens_per_s": rate})
