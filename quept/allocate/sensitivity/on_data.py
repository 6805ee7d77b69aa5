"""Measure a SensitivityTable of a model that sees: one layer at b bits, everything else as it is, for every
layer and width, by whole passes over pictures or questions with right answers.

    S[layer, b] = KL(full precision || one layer at b) of the task's answers, a mean over its data

Such a model is small or its data are, so every plan is a view that runs over all of them: no pass starts
late, and any task that has a KL will do. The same lines are kept for resuming as for texts, see `measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from quept.evaluate.tasks import EvalTask
from quept.files import dtype_name
from quept.plan import QUANTIZED_BITS, Bits, PrecisionPlan
from quept.runtime.model import ElasticModel

from .measure import ROUNDED_CACHE, ROUNDED_INPUTS, Lines, rounded
from .table import SensitivityError, SensitivityTable

Progress = Callable[[str, float | None], None]
KEPT = ("kl", "kl_se", "top1", "same_top", "tokens")  # of a whole plan


def measure_on_data(
    elastic: ElasticModel,
    changed: EvalTask,
    curve: EvalTask,
    widths: tuple[int, ...] = QUANTIZED_BITS,
    *,
    embeddings: bool = True,
    activations: bool = False,
    cache: bool = False,
    extend: SensitivityTable | None = None,
    whole: Sequence[str] = (),
    model: str = "",
    progress: Progress | None = None,
    resume: str | Path | None = None,
) -> SensitivityTable:
    """Changes one layer at a time on the data of `changed`; measures whole plans on those of `curve`: every
    width for all layers, and those named in `whole`. Options as of `measure_sensitivity`, which does the same
    on windows of text. SensitivityError when `resume` holds another measurement."""
    layers, blocks, dtype = elastic.layers, elastic.cached_blocks if cache else (), dtype_name(elastic.dtype)
    conditions = {
        "text": changed.conditions["data"],
        "tokens": changed.total,
        "unit": curve.unit,
        "dtype": dtype,
    }
    if extend and dict(extend.data) != conditions:
        raise SensitivityError(f"the table to extend was measured otherwise: {extend.conditions}")
    new = [name for name in whole if not extend or name not in extend.whole]
    plans = {f"all layers, {name}": (curve, PrecisionPlan.parse(name)) for name in new}
    plans["embeddings, 16"] = (changed, PrecisionPlan.full())
    for block in blocks:
        for bits in ROUNDED_CACHE:
            plans[f"cache of {block}, {bits}"] = changed, PrecisionPlan.of({}, kv_blocks={block: bits})
    if not extend:
        plans |= {f"all layers, W{bits}": (curve, PrecisionPlan.uniform(bits)) for bits in widths}
    for bits in widths if embeddings and not extend else ():
        plans[f"embeddings, {bits}"] = changed, PrecisionPlan.of({}, embeddings=bits)
    for name in () if extend else layers:
        for bits in widths:
            plans[f"weights of {name}, {bits}"] = changed, PrecisionPlan.of({name: bits})
        for bits in ROUNDED_INPUTS if activations else ():
            plans[f"activations of {name}, {bits}"] = (
                changed,
                PrecisionPlan.of({name: Bits(activations=bits)}),
            )
    head = {"measurement": "sensitivity on data 1", "fingerprint": elastic.identity, "dtype": dtype}
    head |= {"group": elastic.artifact.group, "method": elastic.artifact.manifest.method}
    head |= {"changed": changed.id, "whole": curve.id}
    done = Lines(resume, head)
    for number, (key, (task, plan)) in enumerate(plans.items()):
        if key not in done:
            *_, last = task.estimates(elastic.view(plan), plan)
            done[key] = {name: last.payload[name] for name in (*KEPT, "top1_ref")}
        if progress:
            progress(key, (number + 1) / len(plans))
    noise = done["embeddings, 16"]["kl"]  # of the compute dtype, and of a transform

    def costs(what: str, offered: Sequence[int]) -> dict[int, float]:
        return rounded({bits: max(0.0, done[f"{what}, {bits}"]["kl"] - noise) for bits in offered})

    def kept(name: str) -> dict[str, float]:
        return {key: done[f"all layers, {name}"][key] for key in KEPT}

    rows = {block: costs(f"cache of {block}", ROUNDED_CACHE) for block in blocks}
    if extend:
        measured = dict(extend.whole) | {name: kept(name) for name in new}
        return replace(extend, whole=measured, cache=rows or extend.cache)
    return SensitivityTable(
        model=model or elastic.source,
        fingerprint=elastic.identity,
        group=elastic.artifact.group,
        per="layer",
        data=conditions,
        reference={"top1": done[f"all layers, W{widths[0]}"]["top1_ref"], "tokens": curve.total},
        layers={name: costs(f"weights of {name}", widths) for name in layers},
        uniform={bits: kept(f"W{bits}") for bits in widths},
        whole={name: kept(name) for name in whole},
        embeddings=costs("embeddings", widths) if embeddings else {},
        activations={name: costs(f"activations of {name}", ROUNDED_INPUTS) for name in layers}
        if activations
        else {},
        cache=rows,
    )
