"""How far a model at some precision is from full precision: one forward pass per window against the stored
reference.

With p the reference's distribution over the vocabulary, q the model's, at each scored position t of each
window:

    kl(t)   = sum_v p_v (log p_v - log q_v)             in nats, softmax over the vocabulary
    nll(t)  = -log q(next token),  nll_ref(t) = -log p(next token)
    same(t) = the two most likely tokens are equal      (argmax: of equal logits the first counts)
    dp(t)   = q(next token) - p(next token)

and an `Estimate` sums up the positions seen so far: mean, median and tail of kl, exp of the mean nll, share
of same, root mean square of dp. Standard errors come from the spread over positions, `std / sqrt(n)`, as if
positions were independent; neighbours in a text are not quite, so the true errors are somewhat larger.
`ppl_se` is the delta method's. `ppl_ratio` is paired (the same tokens under both models), which takes the
spread between texts away.

Cost of the comparison for SmolLM2 (V = 49,152) and a window of 512: 150 MB from memory (2 V bytes of the
reference and 4 V of logits per position), once, since a chunk of rows stays in the core's cache for the
eleven passes made over it. Those passes are what takes the time: 130 ms on one core, where the memory alone
would take 4 ms at 37 GB/s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn

from quept.data.windows import Windows

from .forward import Gate, MakeCache, NonFiniteLogits, chunks, pause_of, window_logits
from .intervals import mean_and_error
from .reference import Reference, ReferenceWindow
from .results import read_as


@dataclass(frozen=True)
class Estimate:
    """What `tokens` scored positions say, in finite numbers; `seconds` is wall time, waiting included."""

    tokens: int
    kl: float
    kl_se: float
    kl_median: float
    kl_p99: float
    kl_p999: float
    ppl: float
    ppl_se: float
    ppl_ref: float
    ppl_ratio: float
    ppl_ratio_se: float
    same_top: float
    same_top_se: float
    rms_dp: float
    seconds: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, float]) -> Estimate:
        """Inverse of `to_dict`, see `read_as`."""
        return read_as(cls, data)


@dataclass(frozen=True)
class TokenScores:
    """The per-position measures of the module docstring, each (T,): fp32 on the CPU, `same` bool."""

    kl: Tensor
    nll: Tensor
    nll_ref: Tensor
    same: Tensor
    dp: Tensor


@torch.no_grad()
def compare(
    logits: Tensor, reference: ReferenceWindow, targets: Tensor, pause: Callable[[], None] = lambda: None
) -> TokenScores:
    """Score logits (T, V) of any float dtype against a reference window of T positions; targets (T,) are the
    next tokens. pause: called between two chunks of rows.

    Works in fp32 on the logits' device and leaves `logits` as they are. Non-finite logits come out as
    non-finite scores. `kl` is exact to about 2e-6 and may be negative by that much.
    """
    if logits.shape != reference.logits.shape:
        raise ValueError(
            f"the model's logits are {tuple(logits.shape)}, the reference's {tuple(reference.logits.shape)}: "
            "measure against a reference of the same model and windows"
        )
    device = logits.device
    targets, top = targets.to(device), reference.top.to(device)
    kl, nll = torch.empty(2, len(logits), dtype=torch.float32, device=device)
    same = torch.empty(len(logits), dtype=torch.bool, device=device)
    for rows in chunks(*logits.shape, device):
        pause()
        log_q = logits[rows].float()
        highest, best = log_q.max(-1, keepdim=True)  # four times faster than argmax on a CPU
        same[rows] = best[:, 0] == top[rows]
        log_q = log_q - highest
        buffer = log_q.exp()
        log_q -= buffer.sum(-1, keepdim=True).log_()  # log_softmax's own sum is ten times less exact
        nll[rows] = -log_q.gather(-1, targets[rows, None])[:, 0]
        log_p = reference.log_probs(rows, device)
        p = torch.exp(log_p, out=buffer)
        kl[rows] = log_p.sub_(log_q).mul_(p).sum(-1)
    kl, nll, same = kl.cpu(), nll.cpu(), same.cpu()
    return TokenScores(kl, nll, reference.nll, same, (-nll).exp() - (-reference.nll).exp())


def exp_capped(nll: float) -> float:
    """exp that stays finite (and so valid JSON) for models so broken that it or its error would overflow."""
    return math.exp(min(nll, 600.0))


def summarise(scores: TokenScores, seconds: float = 0.0) -> Estimate:
    """One estimate from the scores of all positions seen."""
    kl, kl_se = mean_and_error(scores.kl)
    shares = torch.tensor([0.5, 0.99, 0.999], dtype=torch.float64)
    median, p99, p999 = torch.quantile(scores.kl.double(), shares).tolist()
    nll, nll_se = mean_and_error(scores.nll)
    gap, gap_se = mean_and_error(scores.nll.double() - scores.nll_ref.double())
    ppl, ratio, share = exp_capped(nll), exp_capped(gap), scores.same.double().mean().item()
    return Estimate(
        tokens=len(scores.kl),
        kl=kl,
        kl_se=kl_se,
        kl_median=median,
        kl_p99=p99,
        kl_p999=p999,
        ppl=ppl,
        ppl_se=ppl * nll_se,
        ppl_ref=exp_capped(scores.nll_ref.double().mean().item()),
        ppl_ratio=ratio,
        ppl_ratio_se=ratio * gap_se,
        same_top=share,
        same_top_se=math.sqrt(share * (1 - share) / len(scores.kl)),
        rms_dp=scores.dp.double().square().mean().sqrt().item(),
        seconds=seconds,
    )


def divergence(
    model: nn.Module,
    reference: Reference,
    windows: Windows,
    make_cache: MakeCache | None = None,
    gate: Gate = nullcontext,
    first: int | None = None,
) -> Iterator[Estimate]:
    """One estimate after every window, over all windows so far; the last one covers them all. first: one
    more before them, over this many tokens of the first window where that is longer.

    Each window is one forward pass and its comparison with `gate()` held (a fair lock of the caller's; do not
    hold it around this generator yourself), and one more turn for a window that the reference does not have
    yet. Closing the generator, or not asking for the next estimate, stops the measurement after the current
    window. Raises NonFiniteLogits when the model answers NaN or infinity.
    """
    if windows.id != reference.windows.id:
        raise ValueError(
            "these windows are not the reference's: open the reference with the windows you measure on"
        )
    start = time.perf_counter()
    seen: list[TokenScores] = []
    whole = windows.context - 1
    parts = [(i, whole) for i in range(len(windows))]
    if first and first < whole:
        parts.insert(0, (0, first))
    for i, size in parts:
        full_precision = reference.window(i, gate).first(size)
        with gate() as turn:
            logits = window_logits(model, windows.ids[i][: size + 1], make_cache, turn)
            scores = compare(logits[:-1], full_precision, windows.targets[i][:size], pause_of(turn))
        del logits, full_precision  # 150 MB for SmolLM2: not kept while the consumer looks at the estimate
        broken = ~(scores.kl.isfinite() & scores.nll.isfinite())
        if broken.any():
            position = broken.nonzero()[0].item()
            raise NonFiniteLogits(
                f"the model's logits are not finite in window {i}, position {position}: "
                "try more bits, or float32 instead of a half precision"
            )
        yield summarise(_joined([*seen, scores]), time.perf_counter() - start)
        if size == whole:
            seen.append(scores)


def _joined(scores: list[TokenScores]) -> TokenScores:
    return TokenScores(*(torch.cat([getattr(s, f.name) for s in scores]) for f in fields(TokenScores)))
