"""What a model is calibrated on: token windows of a text or pictures, as inputs of its forward.

Inputs are tensors by the names of the forward's arguments, one sample a row: {"input_ids": (n, context)} of a
language model, {"x": (n, channels, height, width)} of a classifier from timm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import LongTensor, Tensor, nn

from quept.config import Recipe
from quept.models import LoadedModel

from .errors import CalibrationError
from .pictures import pictures
from .text import sequences, without

Inputs = Mapping[str, Tensor]
BATCH = 32  # pictures that are shown at once where nothing is learned
Progress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Data:
    """block_wise and end_to_end: what the stages of these names read, without a sample of held_out, on which
    widths are compared at the end."""

    block_wise: Inputs
    end_to_end: Inputs
    held_out: Inputs


def calibration_data(recipe: Recipe, loaded: LoadedModel, report: Progress) -> Data:
    """Raises ValueError for a text or pictures that cannot be had, CalibrationError for too few of them."""
    block_wise, end_to_end = recipe.block_wise, recipe.end_to_end
    if loaded.vision:
        return _pictures(recipe, loaded, report)
    report("reading the calibration text", None)
    stage = end_to_end or block_wise
    first = block_wise.sequences if block_wise else 0
    count = first + (end_to_end.steps * end_to_end.batch if end_to_end else 0)
    ids = sequences(
        recipe.text.sources, loaded.tokenizer, count + recipe.held_out, stage.context, recipe.seed, report
    )
    held_out, ids = ids[: recipe.held_out], ids[recipe.held_out :]
    ids = without(ids, held_out)  # a short text gives windows more than once
    if len(ids) == 0:
        raise CalibrationError(
            f"the calibration text is too short to hold {recipe.held_out} windows of {stage.context} tokens "
            "out of it: give a longer text or a shorter context"
        )
    ids: LongTensor = ids.repeat(-(-count // len(ids)), 1)[:count]
    return Data({"input_ids": ids[:first]}, {"input_ids": ids[first:]}, {"input_ids": held_out})


def _pictures(recipe: Recipe, loaded: LoadedModel, report: Progress) -> Data:
    """Both stages read the same pictures."""
    report("reading the calibration pictures", None)
    wanted = recipe.images.count
    found = pictures(recipe.images.source, loaded.vision, wanted + recipe.held_out, recipe.seed, report)
    if len(found) <= recipe.held_out:
        raise CalibrationError(
            f"{len(found)} pictures can be read in {recipe.images.source}, too few to hold {recipe.held_out} "
            "out of them: give more"
        )
    training = {"x": found[recipe.held_out :]}
    return Data(training, training, {"x": found[: recipe.held_out]})


def rows(inputs: Inputs, index: slice | Tensor, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Some samples, on a device."""
    return {name: tensor[index].to(device) for name, tensor in inputs.items()}


def batches(
    inputs: Inputs, count: int, device: torch.device | str = "cpu", size: int = BATCH
) -> Iterator[dict[str, Tensor]]:
    """The first `count` samples, `size` at a time."""
    for start in range(0, min(count, samples(inputs)), size):
        yield rows(inputs, slice(start, min(start + size, count)), device)


def samples(inputs: Inputs) -> int:
    """How many there are."""
    return len(next(iter(inputs.values())))


def logits_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """Logits of a language model (samples, tokens, vocabulary) or a classifier (samples, classes)."""
    if "x" in inputs:
        return model(**inputs)
    return model(**inputs, use_cache=False).logits
