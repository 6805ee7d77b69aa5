"""What a model is calibrated on: the contract that every kind of data keeps.

A kind is a frozen dataclass in a file of its own, with an entry in `quept.data.SOURCES`. Its fields are the
settings in the table [data] of a recipe, beside `kind = "text"` and the like, which names the entry; nothing
else knows the kinds. `read` gives the samples, as inputs of the model's forward (see `batches`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ConfigDict

from quept.models import LoadedModel

from .batches import Inputs

Progress = Callable[[str, float | None], None]
TRANSFORMS = ("norms", "rotation", "scaling", "reparameterisation")


class DataError(ValueError):
    """Data or settings of data that cannot be used; the message says which and what to do."""


@dataclass(frozen=True)
class Wanted:
    """How much a run reads. block_wise, end_to_end: samples of the stages, and context: tokens of each, where
    the data are cut as one likes (`sized`). held_out: samples that no stage may see."""

    block_wise: int = 0
    end_to_end: int = 0
    held_out: int = 0
    context: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Data:
    """block_wise and end_to_end: what the stages of these names read, without a sample of held_out, on which
    widths are compared at the end."""

    block_wise: Inputs
    end_to_end: Inputs
    held_out: Inputs


class DataSource:
    """See the module. noun: what it is, in sentences. models: the kinds of model it is for. option: of the
    command line, by which another place is given. sized: whether stages say how much of it they read.
    transforms: those that recipes on it may have; static: whether they may have grids of activations.
    together: samples that are shown at once where nothing is learned."""

    noun: ClassVar[str]
    models: ClassVar[tuple[str, ...]]
    option: ClassVar[str] = "--data"
    sized: ClassVar[bool] = False
    transforms: ClassVar[tuple[str, ...]] = ()
    static: ClassVar[bool] = False
    together: ClassVar[int] = 1
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")  # of recipes that name one

    @property
    def given(self) -> bool:
        """Whether it is said where the data are."""
        return True

    def at(self, place: Any) -> Self:
        """The same settings for another place."""
        raise NotImplementedError

    def shared(self) -> Self:
        """The settings as others may read them: files and folders by name, not by where they lay."""
        raise NotImplementedError

    def identity(self) -> list[str]:
        """What tells these data from others of the same settings when a run is resumed."""
        raise NotImplementedError

    def describe(self) -> str:
        """The data as text, for the artifact."""
        raise NotImplementedError

    def read(self, loaded: LoadedModel, wanted: Wanted, report: Progress) -> Data:
        """The samples. The same arguments give the same ones. DataError for a place that is none or holds too
        few."""
        raise NotImplementedError


@dataclass(frozen=True)
class FolderSource(DataSource):
    """Data in a folder, or built in under a name. source: either; "" leaves it to whoever runs the recipe.
    count: samples to learn from."""

    source: str
    count: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            need(not isinstance(value, int) or value >= 1, field.name, "must be 1 or more")

    @property
    def given(self) -> bool:
        return bool(self.source)

    def at(self, place: str) -> Self:
        return dataclasses.replace(self, source=place)

    def shared(self) -> Self:
        return self.at(Path(self.source).name)

    def describe(self) -> str:
        return f"{self.count:,} {self.noun} of {Path(self.source).name}"


def need(sound: bool, entry: str, what: str) -> None:
    """DataError "ENTRY WHAT" unless it is sound."""
    if not sound:
        raise DataError(f"{entry} {what}")
