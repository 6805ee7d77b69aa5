"""The contract of an engine: what is stored for a layer, what a layer at a setting is, what it weighs, which
module runs it.

An engine knows weights (out, in) by the names of their layers; it knows no models, plans or files. One that
an artifact names is made by `read` from the manifest and the tensors beside it; one that learns nothing
serves any model, from its weights as they were loaded.

What a forward pass gives besides activations (the bits that each token got) the modules of an engine that
`runs_itself` tell by `quept.engines.reports.report`; tokens of a stream and estimates of tasks carry it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor, dtype, nn

from quept.numerics.grid import Rounding

from . import Setting


class EngineError(ValueError):
    """A setting that cannot be made here; the message says what to do."""


class Stored(Protocol):
    """One layer as it is stored and deployed; everything else about it is the engine's own."""

    @property
    def nbytes(self) -> int: ...


class Listing(Protocol):
    """What an engine may read of an artifact's manifest."""

    group: int | str
    layers: tuple[str, ...]
    recipe: Mapping[str, Any]
    widths: Mapping[str, tuple[int, ...]]


class Engine:
    """An engine; `read`, `quantize`, `values` and `nbytes` are what a new one has to give.

    title: what it does, for headings. recipe_part: the entry of the recipe that says how its tensors are
    read, "" for an engine that learns nothing. learned: `{layer: what was learned of it}`. routes: what
    averages of bits per token spend and cost, where settings are such. runs_itself:
    whether `module` runs its layers, in its own way, and no backend."""

    title: ClassVar[str]
    recipe_part: ClassVar[str] = ""
    runs_itself: ClassVar[bool] = False
    learned: Mapping[str, Any] = {}
    routes: Any = None

    @classmethod
    def read(cls, listing: Listing, tensors: Mapping[str, Tensor]) -> Engine:
        """Returns the engine over what an artifact stores; ValueError or KeyError where that does not fit."""
        raise NotImplementedError

    def misfit(self, layer: str, rows: int, columns: int) -> str:
        """Returns why what is stored of a layer does not fit a weight of this shape, "" if it does."""
        return ""

    def tensors(self) -> dict[str, Tensor]:
        """Returns what an artifact stores beside its manifest, by name: what `read` takes."""
        return {}

    def quantize(self, layer: str, weight: Tensor, setting: Setting) -> tuple[Stored, Tensor | None]:
        """Returns a weight (out, in) as stored, and its values (out, in) float32 where they come with it."""
        raise NotImplementedError

    def rounding(self, layer: str, weight: Tensor, setting: Setting) -> Rounding | None:
        """Returns what `quantize` rounds where its codes are those of a grid, so that a backend may round it
        for itself; None where they are others."""
        return None

    def values(self, stored: Stored, setting: Setting) -> Tensor:
        """Returns the values (out, in) float32 of what `quantize` stored."""
        raise NotImplementedError

    def nbytes(self, rows: int, columns: int, setting: Setting) -> int:
        """Returns the bytes of what `quantize` stores of a weight of this shape, without making it."""
        raise NotImplementedError

    def storage(self, setting: Setting) -> Setting:
        """Returns the setting under which a layer at `setting` is stored: nested ones share one."""
        return setting

    def deployed(self, stored: Stored, setting: Setting) -> Stored:
        """Returns a stored layer as a file of this setting alone holds it."""
        return stored

    def unheld(self, setting: Setting) -> str:
        """Returns why no file of codes holds a layer at this setting; "" if one does."""
        return ""

    def static(self, layer: str) -> Mapping[int, Tensor]:
        """Returns the static grids of a layer's activations, `{bits: (2, sites)}`; {} where they are rounded
        per token."""
        return {}

    def module(self, stored: Stored, setting: Setting, bias: Tensor | None, dtype: dtype) -> nn.Module:
        """Returns the module that runs a stored layer at a setting in one view, in this dtype and over the
        same tensors; of an engine that `runs_itself`."""
        raise NotImplementedError

    def steady(self, setting: Setting) -> bool:
        """Returns whether text read in parts gives the very logits of text read at once."""
        return True

    def key(self, setting: Setting) -> str:
        """Returns what numbers measured at this setting of the base weights are filed under."""
        return str(setting)

    @classmethod
    def missing(cls) -> str:
        """Returns what has to be installed before it runs here, as a sentence; "" if nothing has."""
        return ""

    def conditions(self) -> dict[str, str]:
        """Returns what numbers depend on besides the settings, by name: versions of other people's code."""
        return {}
