"""Samples as inputs of a model's forward, and batches of them.

Inputs are tensors by the names of the forward's arguments, one sample a row: {"input_ids": (n, context)} of a
language model, {"x": (n, channels, height, width)} of a classifier from timm. What a vision-language model
reads about pictures differs in length and is `Ragged`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .ragged import Ragged

Inputs = Mapping[str, Tensor] | Ragged
BATCH = 32  # pictures that are shown at once where nothing is learned


def rows(inputs: Inputs, index: slice | Tensor, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Some samples, on a device."""
    if isinstance(inputs, Ragged):
        return {name: tensor.to(device) for name, tensor in inputs.batch(index).items()}
    return {name: tensor[index].to(device) for name, tensor in inputs.items()}


def batches(
    inputs: Inputs, count: int, device: torch.device | str = "cpu", size: int = BATCH
) -> Iterator[dict[str, Tensor]]:
    """The first `count` samples, `size` at a time."""
    for start in range(0, min(count, samples(inputs)), size):
        yield rows(inputs, slice(start, min(start + size, count)), device)


def samples(inputs: Inputs) -> int:
    """How many there are; ValueError where the tensors have not the same number of rows."""
    if isinstance(inputs, Ragged):
        return len(inputs)
    count = len(next(iter(inputs.values())))
    if wrong := [name for name, tensor in inputs.items() if len(tensor) != count]:
        raise ValueError(f"{wrong[0]} has {len(inputs[wrong[0]])} sequences, and others {count}")
    return count
