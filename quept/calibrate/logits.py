"""Logits of any model on its inputs, where they count.

What a vision-language model reads about pictures says with LOSS_MASK, (1, tokens) bool, behind which tokens
one of the answer follows: only there is it compared with full precision, and only there are logits made.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import LongTensor, Tensor, nn

from quept.data.ragged import LOSS_MASK
from quept.models.vision import class_logits


def logits_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits of a language model (samples, tokens, vocabulary) or a classifier (samples, classes); with a
    loss mask its logits there (positions, vocabulary)."""
    if "x" in inputs:
        return class_logits(model(**inputs))
    return answer_logits(model(**arguments(inputs), use_cache=False).logits, inputs)


def arguments(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the forward of a language or vision-language model takes: it gives logits only for the columns in
    which the loss mask of any sample of the batch is set."""
    if LOSS_MASK not in inputs:
        return dict(inputs)
    asked = {name: tensor for name, tensor in inputs.items() if name != LOSS_MASK}
    return asked | {"logits_to_keep": _columns(inputs)}


def answer_logits(logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Of the logits that `arguments` lead to, those of the loss mask; without one all."""
    return logits[inputs[LOSS_MASK][:, _columns(inputs)]] if LOSS_MASK in inputs else logits


def _columns(inputs: Mapping[str, Tensor]) -> LongTensor:
    return inputs[LOSS_MASK].any(0).nonzero()[:, 0]
