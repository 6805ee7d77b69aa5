"""What a model is calibrated on: token windows of a text, pictures, or conversations about pictures, as
inputs of its forward.

Inputs are tensors by the names of the forward's arguments, one sample a row: {"input_ids": (n, context)} of a
language model, {"x": (n, channels, height, width)} of a classifier from timm. What a vision-language model
reads about pictures differs in length and is `Ragged`; beside the arguments of the forward it says with
SPOKEN, (1, tokens) bool, after which tokens the model speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import LongTensor, Tensor, nn

from quept.config import Recipe
from quept.data.conversations import SPOKEN, conversations
from quept.data.pictures import pictures
from quept.data.ragged import Ragged
from quept.data.text import sequences, without
from quept.models import LoadedModel
from quept.models.context import check_context, context_length

from .errors import CalibrationError

Inputs = Mapping[str, Tensor] | Ragged
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
    """Raises ValueError for a text, pictures or pairs that cannot be had, CalibrationError for too few."""
    block_wise, end_to_end = recipe.block_wise, recipe.end_to_end
    if loaded.vision:
        return _pictures(recipe, loaded, report)
    if recipe.pairs:
        return _pairs(recipe, loaded, report)
    report("reading the calibration text", None)
    stage = end_to_end or block_wise
    check_context(stage.context, loaded.model)
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


def _pairs(recipe: Recipe, loaded: LoadedModel, report: Progress) -> Data:
    """Both stages read the same conversations."""
    report("reading the calibration pairs", None)
    longest = context_length(loaded.model) or recipe.pairs.context
    pairs = replace(recipe.pairs, context=min(recipe.pairs.context, longest))
    held_out, training = conversations(pairs, loaded.processor, recipe.held_out, recipe.seed, report)
    return Data(training.of_one_length(), training, held_out)


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


def logits_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits of a language model (samples, tokens, vocabulary) or a classifier (samples, classes); where it
    is said after which tokens the model speaks, its logits there (positions, vocabulary)."""
    if "x" in inputs:
        return model(**inputs)
    return spoken(model(**arguments(inputs), use_cache=False).logits, inputs)


def arguments(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the forward of a language or vision-language model takes: it gives logits only for the columns in
    which any sample of the batch speaks."""
    if SPOKEN not in inputs:
        return dict(inputs)
    asked = {name: tensor for name, tensor in inputs.items() if name != SPOKEN}
    return asked | {"logits_to_keep": _columns(inputs)}


def spoken(logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Of the logits that `arguments` lead to, those after which the model speaks; without SPOKEN all."""
    return logits[inputs[SPOKEN][:, _columns(inputs)]] if SPOKEN in inputs else logits


def _columns(inputs: Mapping[str, Tensor]) -> LongTensor:
    return inputs[SPOKEN].any(0).nonzero()[:, 0]
