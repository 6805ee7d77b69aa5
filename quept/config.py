"""Calibration recipes: what a run does, as frozen settings read from a TOML file that people can read.

    recipe = Recipe.load("smollm2-weight-only")        # a name of presets/recipes, or a path

A recipe names its data (of a kind in `quept.data.SOURCES`), its transforms, its adapters and clips, for
pictures the `static` grids of activations, one or two stages: `block_wise` (QuEPT's reconstruction of one
block after another) and `end_to_end` (divergence of the whole model from full precision), and for pictures
`rounding`, the choice between neighbors on the grid. A recipe with static grids or rounding may do without
stages: no adapter is learned then. An unknown key is an error, so is a value of the
wrong kind: nothing is accepted and ignored.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

from quept.checked import Share, checked, form
from quept.data import SOURCES, DataError, DataSource, Wanted
from quept.files import read_text
from quept.numerics.adapters import RankSchedule
from quept.plan import ACTIVATION_BITS, FULL
from quept.presets import RECIPES, recipes
from quept.zoo import TEXTS

_SEED = Annotated[int, Field(ge=0, lt=2**63)]
_BITS = Annotated[list[Annotated[int, Field(ge=2, le=8)]], Field(min_length=1)]
TRANSFORMS = {  # {kind: the form of its settings}
    "norms": form(kind=str),
    "rotation": form(kind=str, seed=_SEED, heads=bool, online=bool),
    "scaling": form(kind=str, bits=_BITS, grid=Annotated[int, Field(ge=2, le=1000)]),
    "reparameterisation": form(kind=str, strength=Share, percentile=Share),
}
MOST_TOKENS, MOST_ITEMS = 2 * 10**9, 10**7  # that a recipe may ask for: more is a slip of the pen


class RecipeError(ValueError):
    """A recipe that cannot be read or makes no sense; the message names the file and the entry."""


@dataclass(frozen=True)
class Static:
    """Static grids of activations: for each width, of the `percentiles` (1: all values) those that lose least
    on `images` of the pictures."""

    widths: tuple[int, ...]
    percentiles: tuple[float, ...]
    images: int = 128

    def __post_init__(self) -> None:
        widths = [b for b in ACTIVATION_BITS if b != FULL]
        _need(bool(self.widths) and set(self.widths) <= set(widths), "widths", f"must be of {widths}")
        _need(bool(self.percentiles), "percentiles", "needs at least one")
        _need(all(0.5 < p <= 1 for p in self.percentiles), "percentiles", "must lie between 0.5 and 1")
        _need(self.images >= 1, "images", "must be 1 or more")


@dataclass(frozen=True)
class Clip:
    """start: `{bits: logit}` that the clip factors sigmoid(logit) start from. A width not named is not
    clipped."""

    start: Mapping[int, float]


@dataclass(frozen=True)
class BlockWise:
    """QuEPT's reconstruction. sequences x context tokens (of pictures and pairs: all that the recipe names),
    `batch` of them a step; a loss for every bit group. activations: inputs of the layers are rounded
    too, to the width of the weights where that is 4 or more; drop: the share of them left as they were, drawn
    at random; activation_rate: of the ends of static grids. merge: weights of the groups in the next block's
    input, highest group first; keep: the share of tokens that keep the highest group's features. memory:
    bytes of activations held before they go to disk."""

    batch: int
    epochs: int
    adapter_rates: tuple[float, ...]
    clip_rate: float
    merge: tuple[float, ...]
    sequences: int = 0
    context: int = 0
    keep: float = 0.5
    activations: bool = False
    activation_rate: float = 0.0
    drop: float = 0.0
    memory: int = 4_000_000_000

    def __post_init__(self) -> None:
        for name in ("batch", "epochs", "memory"):
            _need(getattr(self, name) >= 1, name, "must be 1 or more")
        for name in ("sequences", "context", "clip_rate", "activation_rate"):
            _need(getattr(self, name) >= 0, name, "must not be negative")
        _need(0 <= self.drop < 1, "drop", "must lie between 0 and 1")
        _need(all(rate >= 0 for rate in self.adapter_rates), "adapter_rates", "must not be negative")
        _need(abs(sum(self.merge) - 1) < 1e-6, "merge", "weights must add up to 1")
        _need(0 <= self.keep <= 1, "keep", "must lie between 0 and 1")


@dataclass(frozen=True)
class EndToEnd:
    """Distillation of the whole model. Each step reads `batch` sequences of `context` tokens, or `batch`
    pictures or pairs, and for each entry of `draws` does one backward pass at a width drawn from it; every
    `mixed_every`-th step one more, at a plan that draws a width for every layer (0: never). activations:
    inputs of the layers are rounded too, to the width of the weights (below 4 they stay) or, with probability
    `wider`, to a larger one; activation_rate and drop as in BlockWise. checkpointed: keep only block
    inputs for the backward pass. adapter_rates: one for each bit group; high widths want gentle steps.
    features: weight, beside the divergence, of how far what each block gives is from full precision's."""

    steps: int
    batch: int
    adapter_rates: tuple[float, ...]
    clip_rate: float
    draws: tuple[tuple[int, ...], ...]
    context: int = 0
    mixed_every: int = 0
    activations: bool = False
    wider: float = 0.0
    activation_rate: float = 0.0
    drop: float = 0.0
    warmup: int = 5
    checkpointed: bool = False
    features: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            _need(getattr(self, name) >= 1, name, "must be 1 or more")
        for name in ("context", "clip_rate", "mixed_every", "wider", "warmup", "activation_rate", "features"):
            _need(getattr(self, name) >= 0, name, "must not be negative")
        _need(0 <= self.drop < 1, "drop", "must lie between 0 and 1")
        _need(all(rate >= 0 for rate in self.adapter_rates), "adapter_rates", "must not be negative")
        _need(bool(self.draws) and all(self.draws), "draws", "needs at least one width to draw")


@dataclass(frozen=True)
class Rounding:
    """For each width which weights go to the second nearest point of their grid (`quept.calibrate.rounding`),
    by what layers are given on `images` of the pictures. in_turn: those of the widths at which it is layer
    after layer, behind activations that are rounded where the recipe rounds them, and at 4 bits and fewer
    with the ends of ranges searched too (`quept.calibrate.in_turn`). Behind the stages: a width keeps it
    where it helps on held-out pictures."""

    widths: tuple[int, ...]
    images: int = 128
    in_turn: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _need(bool(self.widths) and all(2 <= b <= 8 for b in self.widths), "widths", "must be of 2 to 8")
        _need(set(self.in_turn) <= set(self.widths), "in_turn", "must be of the widths")
        _need(self.images >= 1, "images", "must be 1 or more")


@dataclass(frozen=True)
class Routing:
    """Nested codes with routers (`quept.engines.mobiquant`) instead of a grid for each width. router: "mlp",
    learned, with `hidden` units; or an estimate without learning, "norm" of the input or a random
    "projection" of what rounding leaves, of `hidden` rows. sequences: windows of text that it learns from,
    `epochs` times, at `rate`. steps: of the end-to-end stage once more in the routed model, at an average
    drawn from `averages` and at one of the widths that `end_to_end` draws. settled: built-in texts and their
    shares, on which an average spends what it says; empty: what is held out."""

    router: Literal["mlp", "norm", "projection"]
    hidden: int
    sequences: int
    epochs: int
    rate: float
    steps: int = 0
    averages: tuple[float, ...] = ()
    settled: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("hidden", "sequences", "epochs"):
            _need(1 <= getattr(self, name) <= 100_000, name, "must be 1 or more")
        _need(0 < self.rate < 1, "rate", "must lie between 0 and 1")
        _need(0 <= self.steps <= 100_000, "steps", "must not be negative")
        within = all(2 <= average <= 8 for average in self.averages)
        _need(within and bool(self.averages) == bool(self.steps), "averages", "of 2 to 8 bits go with steps")
        known = [name for name, text in TEXTS.items() if text.use == "calibrate"]
        _need(set(self.settled) <= set(known), "settled", f"may name {', '.join(known)}")
        _need(all(share > 0 for share in self.settled.values()), "settled", "needs shares above 0")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """name: of the file. group: columns per scale, "auto", "row", or None for the model's own. transforms:
    steps that `quept.transforms` understands, in order. held_out: sequences, pictures or pairs kept from
    training, on which every width is compared with round-to-nearest at the end."""

    name: str
    note: str
    adapters: RankSchedule
    clip: Clip = field(default_factory=lambda: Clip({}))
    data: Annotated[DataSource, PlainValidator(lambda table: _source(table))]
    static: Static | None = None
    group: int | str | None = None
    seed: int = 0
    held_out: int = 4
    transforms: tuple[Mapping[str, Any], ...] = ()
    block_wise: BlockWise | None = None
    end_to_end: EndToEnd | None = None
    rounding: Rounding | None = None
    routing: Routing | None = None
    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        widths = self.adapters.widths
        stages = tuple(filter(None, (self.block_wise, self.end_to_end)))
        bare = self.static is None and self.rounding is None
        _need(bool(stages) or not bare, "block_wise, end_to_end", "one of the two is needed")
        for name in ("static", "rounding"):
            _need(self.data.static or getattr(self, name) is None, name, f"is not for {self.data.noun}")
        of = set(self.rounding.widths) if self.rounding else set()
        _need(of <= set(widths), "rounding", "chooses at widths of the bit groups")
        _need(set(self.clip.start) <= set(widths) - {8}, "clip", "clips widths of the bit groups below 8")
        _need(1 <= self.held_out <= MOST_ITEMS, "held_out", f"must be 1 to {MOST_ITEMS:,}")
        for step in self.transforms:
            kind = str(step.get("kind"))
            _need(kind in TRANSFORMS, "transforms", f"have the kinds {', '.join(TRANSFORMS)}; got {step}")
            had = kind in self.data.transforms
            _need(had, "transforms", f"of the kind {kind} are not for {self.data.noun}")
            checked(step, TRANSFORMS[kind], f"the {kind} entry of transforms", RecipeError)
        if self.end_to_end:
            drawn = {bits for draw in self.end_to_end.draws for bits in draw}
            _need(drawn <= set(widths), "draws", f"draws {sorted(drawn - set(widths))}, in no bit group")
        for stage in stages:
            sized = (stage.context >= 1) == self.data.sized
            _need(sized, "context", "is needed for a text, and for a text alone")
            count = getattr(stage, "sequences", 0) or getattr(stage, "steps", 1) * stage.batch
            few = (self.held_out + count) * max(1, stage.context) <= MOST_TOKENS
            _need(few, "sequences, steps, batch, context", f"ask for more than {MOST_TOKENS:,} tokens")
            learned = self.static is not None or stage.activation_rate == stage.drop == 0
            _need(learned, "activation_rate, drop", "are for static grids")
            fits = len(stage.adapter_rates) == len(self.adapters.groups)
            _need(fits, "adapter_rates", "needs one rate for each bit group")
        if self.routing:
            self._check_routing()
        if self.block_wise and self.end_to_end:
            same = self.block_wise.context == self.end_to_end.context
            _need(same, "context", "must be the same in block_wise and end_to_end")
        if self.block_wise:
            sized = (self.block_wise.sequences >= 1) == self.data.sized
            _need(sized, "sequences", "is needed for a text, and for a text alone")
            fits = len(self.block_wise.merge) == len(self.adapters.groups)
            _need(fits, "merge", "needs one weight for each bit group")

    def _check_routing(self) -> None:
        alone = self.end_to_end and not (self.block_wise or self.static or self.clip.start)
        _need(bool(alone), "routing", "goes with end_to_end, and with no block_wise, static or clip")
        _need(self.data.sized, "routing", f"is for language models, not for {self.data.noun}")
        _need(not self.end_to_end.activations, "activations", "stay as they are where weights are nested")
        learning = zip(self.adapters.groups, self.adapters.steps, strict=True)
        single = all(len(group) == 1 for group, step in learning if step)
        _need(single, "adapters", "of nested codes belong to one width: give each that has ranks its group")

    @classmethod
    def load(cls, name: str | Path, model: str = "") -> Recipe:
        """A recipe of presets/recipes by name, or any TOML file by path. With the name of a built-in model
        "weight-only" also means the recipe made for it: smollm2-weight-only for smollm2-135m."""
        path = Path(name)
        if path.suffix != ".toml":
            made_for = (f"{of}-{name}" for of in (model, model.partition("-")[0]))
            found = (RECIPES / f"{n}.toml" for n in (name, *made_for))
            path = next(filter(Path.is_file, found), path)
        if not path.is_file():
            raise RecipeError(
                f"no recipe {str(name)!r}: give {', '.join(recipes())}, or a path ending in .toml"
            )
        try:
            data = tomllib.loads(read_text(path, "a recipe"))
        except ValueError as error:
            raise RecipeError(f"{path} is not a recipe: {error}") from None
        try:
            return cls.from_dict({"name": path.stem} | data)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        return _build(cls, migrated(data), "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it back."""
        settings = dataclasses.asdict(self)
        settings["data"] = {"kind": self.kind} | settings["data"]
        return json.loads(json.dumps(settings))

    @property
    def kind(self) -> str:
        """The kind of its data, by which `quept.data.SOURCES` has it."""
        return next(kind for kind, source in SOURCES.items() if type(self.data) is source)

    @property
    def wanted(self) -> Wanted:
        """How much of its data a run reads."""
        one, other = self.block_wise, self.end_to_end
        steps = (other.steps if other else 0) + (self.routing.steps if self.routing else 0)
        return Wanted(
            block_wise=self.routing.sequences if self.routing else one.sequences if one else 0,
            end_to_end=steps * other.batch if other else 0,
            held_out=self.held_out,
            context=max(stage.context if stage else 0 for stage in (one, other)),
            seed=self.seed,
        )

    def at(self, place: str | Mapping[str, float], option: str = "--data") -> Recipe:
        """The same recipe on the data of another place: a folder, or texts with their shares for `--text`.
        RecipeError for one on data that have no such places."""
        _need(self.data.option == option, option, f"is of no use: {self.name} calibrates on {self.data.noun}")
        return dataclasses.replace(self, data=self.data.at(place))

    def shared(self) -> Recipe:
        """The recipe as others may read it: files and folders by name, not by where they lay."""
        return dataclasses.replace(self, data=self.data.shared())


def migrated(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe as it is written now: before, its data stood in a table named after its kind, and in manifests
    those of the other kinds were null."""
    before = tuple(SOURCES)
    rest = {name: value for name, value in recipe.items() if name not in before or value is not None}
    found = [name for name in before if isinstance(rest.get(name), Mapping)]
    if "data" in rest or len(found) != 1:
        return rest
    return rest | {"data": {"kind": found[0], **rest.pop(found[0])}}


def _need(sound: bool, entry: str, what: str) -> None:
    if not sound:
        raise RecipeError(f"{entry} {what}")


def _build(kind: type, table: object, where: str = "") -> Any:
    """The dataclass `kind` from a table as JSON and TOML have it; RecipeError names what is wrong."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as refused:
        errors = {error["type"]: error for error in reversed(refused.errors(include_url=False))}
        found = errors.get("unexpected_keyword_argument") or refused.errors(include_url=False)[0]
    parts = [part for part in (where, *map(str, found["loc"])) if part not in ("", "int", "str", "[key]")]
    entry, error = ".".join(parts), found.get("ctx", {}).get("error")
    if isinstance(error, RecipeError) and parts == ["data"]:  # of `_source`, which named the entry
        raise error from None
    if error:
        own = "." if isinstance(error, RecipeError | DataError) else ": "
        raise RecipeError(f"{entry}{own}{error}" if entry else str(error)) from None
    if found["loc"] and found["loc"][-1] == "[key]":
        raise RecipeError(f"{'.'.join(parts[:-1])} has the entry {parts[-1]!r}, which is not a width")
    if found["type"] == "unexpected_keyword_argument":
        raise RecipeError(f"unknown entry {entry}; there are {_entries(kind, found['loc'][:-1])}")
    if found["type"] == "missing":
        raise RecipeError(f"entry {entry} is missing")
    raise RecipeError(f"{entry or 'the recipe'} cannot be {found['input']!r:.200}")


def _entries(kind: type, path: Sequence[str]) -> str:
    """The entries of a dataclass, or of one that is a field of it."""
    for name in path:
        hint = typing.get_type_hints(kind)[name]
        kind = next(filter(dataclasses.is_dataclass, (hint, *typing.get_args(hint))))
    return ", ".join(field.name for field in dataclasses.fields(kind))


def _source(table: object) -> DataSource:
    """The data source that a table names by its kind."""
    kind = table.get("kind") if isinstance(table, Mapping) else None
    if not isinstance(kind, str) or kind not in SOURCES:
        raise RecipeError(f"data must be a table with a kind: {', '.join(SOURCES)}")
    return _build(SOURCES[kind], {key: value for key, value in table.items() if key != "kind"}, "data")
