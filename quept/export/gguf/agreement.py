"""What llama.cpp says of a plan against what the plan's view says.

llama.cpp rounds the input of every product with a quantized weight to 8 bits. `kl` is what that and all else
costs, `kl_a8` what rounding activations to 8 bits costs by our own view, which gives every token one scale
where llama.cpp gives one to every block of 32 or 256 channels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from quept.plan import FULL, Bits, PrecisionPlan
from quept.runtime import ElasticModel

from .llama_cpp import LlamaCpp

POSITIONS = 24  # half a second each for 50,000 pieces, which come as text


@dataclass(frozen=True)
class Agreement:
    """kl: mean of KL(view || llama.cpp) over positions, nats. kl_a8: mean of KL(view || view with 8-bit
    activations). same_top: share of positions at which both find the same piece likeliest."""

    kl: float
    kl_a8: float
    same_top: float
    positions: int


def agreement(
    elastic: ElasticModel,
    plan: PrecisionPlan,
    llama: LlamaCpp,
    ids: Tensor,
    positions: int = POSITIONS,
    progress: Callable[[str, float | None], None] | None = None,
    gate: Callable[[], AbstractContextManager] = nullcontext,
) -> Agreement:
    """Returns how the file that `llama` runs agrees with the view of the plan that it was written of. ids
    (t,): token ids of a text, at most the context; positions are spread over all but their first quarter.
    gate: held while a view runs."""
    places = torch.linspace(len(ids) // 4, len(ids) - 1, positions).long().unique().tolist()
    with gate():
        wanted = _log_probabilities(elastic.view(plan), ids, elastic.device)[places]
    with gate():
        rounded = _log_probabilities(elastic.view(at_8_bits(plan, elastic)), ids, elastic.device)[places]
    read = []
    for done, place in enumerate(places):
        if progress:
            progress("asking llama.cpp", done / len(places))
        read.append(llama.log_probabilities(ids[: place + 1].tolist(), wanted.shape[1]))
    said = torch.stack(read)
    same = (wanted.argmax(-1) == said.argmax(-1)).double().mean()
    return Agreement(_divergence(wanted, said), _divergence(wanted, rounded), float(same), len(places))


def at_8_bits(plan: PrecisionPlan, elastic: ElasticModel) -> PrecisionPlan:
    """Returns the plan with the input of every quantized layer rounded to 8 bits."""
    rules = {
        layer: Bits(bits.weights, FULL if bits.weights == FULL else 8)
        for layer, bits in plan.resolve(elastic.layers).items()
    }
    return replace(PrecisionPlan.of(rules), embeddings=plan.embeddings)


def _log_probabilities(view: nn.Module, ids: Tensor, device: torch.device) -> Tensor:
    with torch.inference_mode():
        return view(ids[None].to(device)).logits[0].double().log_softmax(-1).cpu()


def _divergence(wanted: Tensor, said: Tensor) -> float:
    """Mean KL(wanted || said) of log-probabilities (n, vocabulary)."""
    return float((wanted.exp() * (wanted - said)).sum(-1).mean())
