"""Multi-bit token merging (QuEPT, MB-ToMe): one stream of activations that stands for all bit groups.

Per token the cosine similarity between the highest group's output and the lowest group's is taken. The most
similar share of tokens keeps the highest group's features; every other token becomes the weighted average
over the groups. The result is the input that the next block is calibrated on.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def merge(outputs: Tensor, weights: Tensor, keep: float = 0.5) -> Tensor:
    """outputs (groups, ..., features), highest bit group first; weights (groups,) summing to 1; keep: the
    share of tokens that stay as the highest group has them (rounded down). Returns (..., features).

    Tokens are ranked over the whole batch; of equally similar ones the earlier is kept."""
    if weights.shape != outputs.shape[:1]:
        raise ValueError(f"{len(outputs)} bit groups need as many merge weights; got {tuple(weights.shape)}")
    if not 0 <= keep <= 1:
        raise ValueError(f"the share of tokens to keep lies between 0 and 1; got {keep}")
    tokens = outputs.flatten(1, -2)  # (groups, T, features)
    similarity = cosine_similarity(tokens[0].float(), tokens[-1].float(), dim=-1)
    kept = similarity.argsort(descending=True, stable=True)[: int(keep * tokens.shape[1])]
    merged = torch.einsum("g,gtc->tc", weights.to(tokens.dtype), tokens)
    merged[kept] = tokens[0, kept]
    return merged.view(outputs.shape[1:])
