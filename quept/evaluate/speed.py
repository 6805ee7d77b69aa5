"""How fast a model runs here: prefill in milliseconds, decoding in tokens per second.

One sequence (batch 1) of random tokens, so no tokenizer and no text: speed does not depend on which tokens
they are. A prefill is one forward pass over `context` tokens that computes the last position's logits only,
as generation does, and so is the time to the first token. Decoding is greedy, one token per pass, on the
cache which that prefill filled. Warm-up runs are thrown away; the numbers are medians over `repeats` runs.
"""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import nn
from transformers import DynamicCache

from quept.files import dtype_name

from .forward import Gate, MakeCache, device_of


@dataclass(frozen=True)
class Speed:
    """The numbers and the conditions they hold under."""

    prefill_ms: float
    decode_tokens_per_s: float
    context: int
    decode_tokens: int
    batch: int
    warmup: int
    repeats: int
    device: str
    threads: int
    dtype: str

    def to_dict(self) -> dict[str, float | int | str]:
        return asdict(self)


def measure_speed(
    model: nn.Module,
    context: int = 512,
    decode_tokens: int = 32,
    warmup: int = 1,
    repeats: int = 3,
    make_cache: MakeCache | None = None,
    gate: Gate = nullcontext,
    seed: int = 0,
) -> Speed:
    """Time `model`; `gate()` is held for each prefill and for each decoding step, and waiting for it is not
    counted.
    """
    if min(context, decode_tokens, repeats) < 1 or warmup < 0:
        raise ValueError(
            "context, decode_tokens and repeats must be at least 1 and warmup at least 0, "
            f"not {context}, {decode_tokens}, {repeats} and {warmup}"
        )
    device = device_of(model)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, context), generator=torch.Generator().manual_seed(seed)).to(device)
    runs = [_run(model, ids, decode_tokens, make_cache, gate) for _ in range(warmup + repeats)][warmup:]
    return Speed(
        prefill_ms=statistics.median(prefill for prefill, _ in runs) * 1e3,
        decode_tokens_per_s=statistics.median(decode_tokens / decode for _, decode in runs),
        context=context,
        decode_tokens=decode_tokens,
        batch=1,
        warmup=warmup,
        repeats=repeats,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        dtype=dtype_name(next(model.parameters()).dtype),
    )


@torch.no_grad()
def _run(
    model: nn.Module, ids: torch.LongTensor, decode_tokens: int, make_cache: MakeCache | None, gate: Gate
) -> tuple[float, float]:
    cache = DynamicCache() if make_cache is None else make_cache()
    seconds = []
    for _ in range(1 + decode_tokens):
        with gate():
            _wait_for(ids.device)
            start = time.perf_counter()
            logits = model(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1).logits
            ids = logits[:, -1:].argmax(-1)
            _wait_for(ids.device)
            seconds.append(time.perf_counter() - start)
    return seconds[0], sum(seconds[1:])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
