"""The transforms of a recipe, found where they need finding and applied to the base."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

from quept.config import Recipe
from quept.data import Data
from quept.data.batches import batches
from quept.data.text import without
from quept.models import LoadedModel
from quept.transforms import Record, apply, search_scales

from .observe import observed_reparameterisation

Progress = Callable[[str, float | None], None]
SEARCHED = 8  # sequences that channel scales are searched on
SHOWN = 128  # pictures that the ranges of channels are taken from


def prepared(
    loaded: LoadedModel, recipe: Recipe, group: int | str, data: Data, report: Progress
) -> LoadedModel:
    """The base with the recipe's transforms. Channel scales (`scaling`) are searched on calibration text and
    the ranges of channels (`reparameterisation`) seen on calibration pictures, never on what is held out, and
    found again to the bit when a run is resumed."""
    record = Record()
    for step in recipe.transforms:
        if step["kind"] == "reparameterisation":
            report("observing the channels behind the norms", None)
            settings = {key: value for key, value in step.items() if key != "kind"}
            model = copy.deepcopy(loaded.model).float()
            shown = list(batches(data.block_wise, SHOWN))
            record = observed_reparameterisation(loaded, model, shown, **settings)
            continue
        if step["kind"] != "scaling":
            record = Record((*record.steps, step), record.tensors)
            continue
        wanted = replace(recipe.wanted, block_wise=SEARCHED, end_to_end=0, held_out=0)
        ids = recipe.data.read(loaded, wanted, report).block_wise["input_ids"]
        ids = without(ids, data.held_out["input_ids"])
        settings = {key: value for key, value in step.items() if key != "kind"}
        found = search_scales(apply(loaded, record), ids, group=group, progress=report, **settings)
        record = Record(found.steps, found.tensors)
    if not record.steps:
        return loaded
    report("transforming the weights", None)
    return apply(loaded, record)
