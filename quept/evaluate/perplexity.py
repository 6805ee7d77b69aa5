"""Perplexity of a model on windows, without a reference, window by window.

`ppl = exp(mean over scored positions of -log p(token | what stands before it in its window))`, with the
scored positions as `windows.py` states them. The standard error is the delta method's, `ppl * std(nll) /
sqrt(n)`; it is the spread over *texts*, so for comparing two models on one text the paired `ppl_ratio` of a
divergence is far sharper.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from quept.data.windows import Windows

from .forward import Gate, MakeCache, NonFiniteLogits, chunks, window_logits
from .intervals import mean_and_error


@dataclass(frozen=True)
class Perplexity:
    """A running estimate: scored `tokens`, mean `nll` in nats, `ppl` its standard error, wall `seconds`."""

    tokens: int
    nll: float
    ppl: float
    ppl_se: float
    seconds: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def exp_capped(nll: float) -> float:
    """exp that stays finite (and so valid JSON) for models so broken that it or its error would overflow."""
    return math.exp(min(nll, 600.0))


@torch.no_grad()
def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] in fp32: logits (T, V) of any float dtype, targets (T,); gives (T,)."""
    targets = targets.to(logits.device)
    nll = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    for rows in chunks(*logits.shape, logits.device):
        chunk = logits[rows].float()
        nll[rows] = chunk.logsumexp(-1) - chunk.gather(-1, targets[rows, None])[:, 0]
    return nll


def perplexity(
    model: nn.Module, windows: Windows, make_cache: MakeCache | None = None, gate: Gate = nullcontext
) -> Iterator[Perplexity]:
    """One estimate after every window, over all windows so far. Stop it between windows by closing the
    generator.

    Raises NonFiniteLogits when the model answers NaN or infinity.
    """
    start = time.perf_counter()
    seen = torch.empty(0)
    for i in range(len(windows)):
        with gate():
            logits = window_logits(model, windows.ids[i], make_cache)
            nll = token_nll(logits[:-1], windows.targets[i]).cpu()
        del logits  # 100 MB for SmolLM2: not kept while the consumer looks at the estimate
        if not nll.isfinite().all():
            position = (~nll.isfinite()).nonzero()[0].item()
            raise NonFiniteLogits(
                f"the model's logits are not finite in window {i}, position {position}: "
                "try more bits, or float32 instead of a half precision"
            )
        seen = torch.cat([seen, nll])
        mean, error = mean_and_error(seen)
        ppl = exp_capped(mean)
        yield Perplexity(len(seen), mean, ppl, ppl * error, time.perf_counter() - start)
