"""The contract of an exporter: one target format, the engines that run it, what of a plan it holds, what that
weighs, and how it is written and read back.

An exporter is asked in this order: `refuses(elastic, plan)` says in a sentence why this plan of this model
cannot be held, `nearest(elastic, plan)` gives the plan closest to it that can; `sizes(elastic)` gives the
bytes that every layer takes at every width there is, `sizes(elastic).deploy(plan)` those of the whole file or
folder, to the byte; `write(elastic, plan, out)` writes, reads back, compares, and only then gives it its
name. One plan of one model gives the same bytes every time. A format says of itself only what differs:
`lacks`, `widths`, `nbytes`, `overhead`, `ties`, `fill`, `compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch

from quept.engines import GRADED_WIDTHS, Setting
from quept.files import replacing, replacing_folder
from quept.models.families import KINDS
from quept.numerics.grid import group_size
from quept.plan import ACTIVATION_BITS, FULL, Bits, PlanError, PrecisionPlan
from quept.runtime import ElasticModel
from quept.runtime.sizes import BYTES_PER_FULL_WEIGHT, Sizes

Progress = Callable[[str, float | None], None]
PLAN = "quept-plan.json"  # in every folder that is written, which marks it as one to be replaced


class ExportError(RuntimeError):
    """A file that cannot be written or read; the message says why."""


@dataclass(frozen=True)
class Compared:
    """What was read back and held against the plan's view. layers: weights on a grid whose codes are the
    view's; weights: how many numbers these hold; relative: the largest difference of a value from the view's,
    as a share of the largest value of its layer; nbytes: of the file, or of all files of the folder."""

    layers: int
    weights: int
    relative: float
    nbytes: int


class Exporter:
    """A target format.

    name: its entry in EXPORTERS. title: as a reader sees it. engines: programs that run it. suffix: of the
    file; "" where a folder is written. exact: "" where the values are the view's bit for bit, else what is
    rounded, as a sentence. commands: lines to type that run it, with {path} for the file or folder. ours:
    whether our own program reads it, which rounds activations and keys and values as the plan says. kind: of
    the models that it is for, "" for all; instead: what to export another one as, in words to type."""

    name: ClassVar[str]
    title: ClassVar[str]
    engines: ClassVar[tuple[str, ...]]
    suffix: ClassVar[str] = ""
    exact: ClassVar[str] = ""
    commands: ClassVar[tuple[str, ...]] = ()
    ours: ClassVar[bool] = False
    kind: ClassVar[str] = ""
    instead: ClassVar[str] = ""

    # What a format says of itself.

    def lacks(self, elastic: ElasticModel) -> str | None:
        """Returns why no plan of this model can be held, as a sentence; None if there is one that can."""
        if self.kind in ("", elastic.kind):
            return None
        return f"{elastic.title} {KINDS[elastic.kind]}, and {self.title} is not for these: {self.instead}"

    def widths(self, columns: int, group: int, embedding: bool = False) -> Mapping[Setting, str]:
        """Returns what each width of a weight becomes, `{3: "Q4_1", ...}`, 16 among them; one that is missing
        cannot be held. columns, group: of the weight and its scales; embedding: whether it is one, or the
        head."""
        raise NotImplementedError

    def nbytes(self, rows: int, columns: int, bits: Setting, group: int) -> int:
        """Returns the bytes that a weight takes in the file, with its scales and what fills it up."""
        raise NotImplementedError

    def overhead(self, elastic: ElasticModel) -> int:
        """Returns the bytes of all else, whatever the plan: headers, norms, tokenizer."""
        raise NotImplementedError

    def ties(self, elastic: ElasticModel) -> tuple[tuple[str, ...], ...]:
        """Returns the groups of layers that must be at one width, because engines fuse them."""
        return ()

    def fill(self, elastic: ElasticModel, plan: PrecisionPlan, out: Path, progress: Progress) -> None:
        """Writes the file `out`, or into the empty folder `out`."""
        raise NotImplementedError

    def compare(self, elastic: ElasticModel, plan: PrecisionPlan, out: Path) -> Compared:
        """Reads it and returns what was compared; ExportError where it is not what the plan says."""
        raise NotImplementedError

    # What follows from it.

    def refuses(self, elastic: ElasticModel, plan: PrecisionPlan) -> str | None:
        """Returns why this plan cannot be held, as a sentence; None if it can. PlanError for a plan that does
        not fit the model."""
        if lacking := self.lacks(elastic):
            return lacking
        if elastic.online and not self.ours:
            return (
                f"{_one(sorted(elastic.online))} pass their input through a Hadamard transform as the model "
                f"runs, which no engine of {self.title} does: export a calibration without rotation"
            )
        resolved, places, engine = plan.resolve(elastic.layers), self.places(elastic), elastic.artifact.engine
        for layer, setting in settings_of(elastic, plan).items():
            if setting not in places[layer]:
                there = ", ".join(map(str, places[layer]))
                return f"{self.title} does not hold {layer} at {_width(setting)}: it has {there} bits"
            why = "" if places[layer][setting] == places[layer].get(FULL) else engine.unheld(setting)
            if why and layer in elastic.layers:
                return f"{layer}: {why}"
        if not self.ours and (layer := next((n for n, b in resolved.items() if b.activations != FULL), "")):
            a = resolved[layer].activations
            return f"engines of {self.title} do not round activations to {a} bits: leave A out of the plan"
        if not self.ours and plan.rounds_cache:
            return f"a file for {self.title} does not say how keys and values are kept: leave KV out"
        for tied in self.ties(elastic):
            if len({resolved[layer].weights for layer in tied}) > 1:
                return f"engines of {self.title} fuse {' and '.join(tied)}: give them one width"
        return None

    def nearest(self, elastic: ElasticModel, plan: PrecisionPlan) -> PrecisionPlan:
        """Returns the plan itself where it can be held, else the closest one that can: each layer at the next
        wider width there is, tied ones at the widest of them, activations, keys and values untouched.
        PlanError where none can."""
        if lacking := self.lacks(elastic):
            raise PlanError(lacking)
        if self.refuses(elastic, plan) is None:
            return plan
        places = self.places(elastic)
        wanted = {name: bits.weights for name, bits in plan.resolve(elastic.layers).items()}
        wanted = {name: 4 if isinstance(w, str) else w for name, w in wanted.items()}
        for tied in self.ties(elastic):
            wanted |= dict.fromkeys(tied, max(wanted[layer] for layer in tied))
        found = {name: _at_least(width, places[name]) for name, width in wanted.items()}
        ends = {_at_least(plan.embeddings, places[name]) for name in elastic.embeddings}
        common = max(found.values(), key=list(found.values()).count)
        rules = {name: width for name, width in found.items() if width != common}
        named = f"{plan.name or 'plan'} for {self.title}"
        near = PrecisionPlan.of(rules, common, name=named, embeddings=max(ends, default=FULL))
        if self.ours:
            return near
        if still := self.refuses(elastic, near):
            raise PlanError(still)
        return near

    def sizes(self, elastic: ElasticModel) -> Sizes:
        """Returns the bytes of every layer at every width that it can have here, of the embeddings and of all
        else: what budgets for this format are counted in. `deploy(plan)` of it is the size of the file."""
        layers, ends = {}, []
        for name, (rows, columns, group) in self._weights(elastic):
            embedding = name in elastic.embeddings
            there = self.widths(columns, group, embedding)
            taken = {bits: self.nbytes(rows, columns, bits, group) for bits in there}
            if embedding:
                ends.append(taken)
            else:
                layers[name] = taken
        common = [bits for bits in ends[0] if all(bits in end for end in ends)] if ends else [FULL]
        embeddings = {bits: sum(end[bits] for end in ends) for bits in common}
        fixed = self.overhead(elastic)
        return replace(elastic.sizes, layers=layers, embeddings=embeddings, fixed=fixed, whole={})

    def write(
        self, elastic: ElasticModel, plan: PrecisionPlan, out: str | Path, progress: Progress | None = None
    ) -> Compared:
        """Writes the plan to `out`, reads it back, compares, and returns what was compared. It appears whole
        or not at all; what was there stays until then.

        Raises PlanError with the sentence of `refuses`, ExportError where it does not read back as it was
        written, FileError where it cannot be written."""
        if why := self.refuses(elastic, plan):
            raise PlanError(why)
        report = progress or (lambda stage, fraction: None)
        _view = elastic.view(plan)  # which keeps its weights in the bank: each is rounded once, not twice
        with self._replacing(out) as temporary:
            self.fill(elastic, plan, temporary, report)
            report("reading back", None)
            return self.compare(elastic, plan, temporary)

    def _replacing(self, out: str | Path) -> AbstractContextManager[Path]:
        return replacing(out) if self.suffix else replacing_folder(out, PLAN)

    def places(self, elastic: ElasticModel) -> dict[str, Mapping[Setting, str]]:
        """Returns what each width becomes, of every layer and embedding by name."""
        return {
            name: self.widths(columns, group, name in elastic.embeddings)
            for name, (_, columns, group) in self._weights(elastic)
        }

    def _weights(self, elastic: ElasticModel) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """Every layer and embedding with its rows, columns and the columns that share a scale."""
        for name, (rows, columns) in elastic.shapes.items():
            yield name, (rows, columns, group_size(columns, elastic.artifact.group))


def settings_of(elastic: ElasticModel, plan: PrecisionPlan) -> dict[str, Setting]:
    """Returns the setting of every layer and embedding at a plan, by name."""
    widths = {name: bits.weights for name, bits in plan.resolve(elastic.layers).items()}
    return widths | dict.fromkeys(elastic.embeddings, plan.embeddings)


def plan_text(elastic: ElasticModel, plan: PrecisionPlan) -> str:
    """Returns the plan as JSON of at most `plan_room` characters, all ASCII: as it is or, where its rules
    take more than that, with every layer named once."""
    text = plan.to_json()
    if len(text) <= plan_room(elastic):
        return text
    return replace(plan, default=Bits(), rules=tuple(plan.resolve(elastic.layers).items())).to_json()


def plan_room(elastic: ElasticModel) -> int:
    """Returns the characters that the longest plan of this model takes: what is kept free for it, so that the
    size of a file does not hang on how its plan is spelled."""
    return _room(elastic.layers)


@lru_cache(maxsize=8)
def _room(layers: tuple[str, ...]) -> int:
    rules = tuple((layer, Bits(FULL, ACTIVATION_BITS[0])) for layer in layers)
    longest = PrecisionPlan(rules=rules, name="\N{GRINNING FACE}" * 200, embeddings=GRADED_WIDTHS[0])
    return len(longest.to_json())


def half_of(dtype: torch.dtype) -> torch.dtype:
    """Returns the 16 bits that a weight of this dtype is stored in where nobody quantized it."""
    return dtype if dtype == torch.bfloat16 else torch.float16


def full_nbytes(rows: int, columns: int) -> int:
    """Returns the bytes of a weight in 16 bits."""
    return BYTES_PER_FULL_WEIGHT * rows * columns


def _at_least(width: Setting, there: Mapping[Setting, str]) -> Setting:
    return min((bits for bits in there if bits >= width), default=max(there))


def _width(setting: Setting) -> str:
    return setting if isinstance(setting, str) else f"{setting} bits"


def _one(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more layers"
