"""A record's steps, in order, on a rewriter of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from quept.models import LoadedModel
from quept.models.families import KINDS

from .norms import fold_norms
from .probe import kept
from .record import Record, TransformError
from .reparameterisation import reparameterise
from .rewriter import Rewriter
from .rotation import rotate
from .scaling import scale

STEPS = {
    "norms": lambda rewriter, record: fold_norms(rewriter),
    "rotation": lambda rewriter, record, **settings: rotate(rewriter, **settings),
    "scaling": lambda rewriter, record, **how: scale(rewriter, record.tensors),
    "reparameterisation": lambda rewriter, record, **how: reparameterise(rewriter, record.tensors),
}
MODELS = {"norms": "language", "rotation": "language", "scaling": "language", "reparameterisation": "vision"}


def apply(loaded: LoadedModel, record: Record, made: Mapping[str, Tensor] | None = None) -> LoadedModel:
    """The model of `loaded` with the record's steps taken: another model with the same logits, up to one
    rounding of each weight to float16 (to float32 or float64 if that is what the model has). The same record
    on the same weights gives the same bits.

    `loaded` is not changed; source, fingerprint and provenance stay those of the base. What comes out runs by
    itself, `online` layers included, but only together with its record can it be stored: save the record and
    the base, not the weights. made: the parameters that came out another time, by name; they are taken as
    they are, and the answers were tried then. TransformError if the model was transformed before, the record
    does not fit, or the answers on a probe are not those of the base (see `probe`).
    """
    if loaded.record is not None:
        raise TransformError(
            f"{loaded.title} was transformed before: load the base again and apply one record with all steps"
        )
    check_kinds(record.steps, loaded)
    rewriter = Rewriter(loaded)
    for step in record.steps:
        settings = dict(step)
        STEPS[settings.pop("kind")](rewriter, record, **settings)
    transformed = rewriter.finish(record, made)
    if made:
        return transformed
    same, off = kept(loaded, transformed)
    if not same:
        kinds = ", ".join(str(step["kind"]) for step in record.steps)
        raise TransformError(
            f"these transforms ({kinds}) do not keep the function of {loaded.title}: on a probe its answers "
            f"change by {off:.0%} of their spread, so its norms or layers are not wired as the "
            f"{loaded.layout.family} family's are; calibrate it by a recipe without transforms"
        )
    return transformed


def check_kinds(steps: Sequence[Mapping[str, Any]], loaded: LoadedModel) -> None:
    """TransformError for a step that is for another kind of model."""
    for kind in (step["kind"] for step in steps):
        if loaded.kind != MODELS[kind]:
            raise TransformError(
                f"{kind} transforms what {KINDS[MODELS[kind]]}, and {loaded.title} {KINDS[loaded.kind]}: "
                "take a recipe without it"
            )
