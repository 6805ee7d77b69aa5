"""The family table applied to one model: its blocks, and each block's linear layers by role, all by full
name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from .families import FAMILIES, LACKING, Family
from .slots import OverChannels, Slot

ADD = "to add a family, write its entry in quept/models/families.py"
_READ_TOGETHER = dict.fromkeys(("q", "k", "v"), "q, k, v") | dict.fromkeys(("gate", "up"), "gate, up")


@dataclass(frozen=True)
class Block:
    """One transformer block: its module name, the full names of its linear layers, `{role: name}`, and the
    section of the model that it belongs to: "language", "vision" or "projector". Roles of experts end with
    the expert's number, "up 7"."""

    name: str
    layers: Mapping[str, str]
    section: str

    def of(self, role: str) -> tuple[str, ...]:
        """The layers of a role: one, those of all experts, or none."""
        return tuple(name for r, name in self.layers.items() if r.partition(" ")[0] == role)

    def pairs(self, first: str, second: str) -> tuple[tuple[str, str], ...]:
        """The layers of two roles that go together: of each expert its own."""
        return tuple(zip(self.of(first), self.of(second), strict=True))


@dataclass(frozen=True)
class ModelLayout:
    """What the rest of the program knows of a model's structure. pixelwise: the layers that are convolutions
    of 1 x 1. other_convolutions: of a convolutional classifier those that are no layers."""

    family: str
    blocks: tuple[Block, ...]
    embed: str
    final_norm: str
    head: str
    pixelwise: frozenset[str] = frozenset()
    other_convolutions: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of all linear layers that a plan speaks of, block by block."""
        return tuple(name for block in self.blocks for name in block.layers.values())

    @property
    def decoder_blocks(self) -> tuple[Block, ...]:
        """The blocks that a plan is about first: of a vision-language model those of its language model, of
        any other model all."""
        return tuple(block for block in self.blocks if block.section == "language") or self.blocks

    @property
    def sections(self) -> dict[str, tuple[str, ...]]:
        """`{section: its linear layers}`, in the order of the data: a vision-language model has three, any
        other model one."""
        found: dict[str, tuple[str, ...]] = {}
        for block in self.blocks:
            found[block.section] = (*found.get(block.section, ()), *block.layers.values())
        return found

    @property
    def vision_layers(self) -> tuple[str, ...]:
        """Patterns of the layers before the decoder of a vision-language model, its vision tower and
        projector; of a convolutional classifier what a plan calls its embeddings; () for any other model.
        See `PrecisionPlan.keeping`."""
        family = FAMILIES[self.family]
        if family.convolutional:
            return ("embeddings",)
        places = (*family.vision, *family.projector)
        return tuple(place if place.endswith("*") else f"{place}.*" for place in places)

    @property
    def slots(self) -> dict[str, Slot]:
        """The weights that a plan speaks of, by the names of their layers."""
        return {name: Slot(name, name) for name in self.layers}

    @property
    def language(self) -> str:
        """The module of a vision-language model that reads embeddings of words and pictures alike."""
        return FAMILIES[self.family].language

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role there is in the family; a block has those of its place."""
        family = FAMILIES[self.family]
        if family.convolutional:
            return tuple(dict.fromkeys(role for block in self.blocks for role in block.layers))
        decoder = (family.roles, family.dense)
        tables = (*family.between.values(), *decoder, *family.vision.values(), *family.projector.values())
        listed = dict.fromkeys(role for roles in tables for role in roles)
        found = dict.fromkeys(role for block in self.blocks for role in block.layers)
        of = {role: [one for one in found if one.partition(" ")[0] == role] for role in listed}
        return tuple(one for role in listed for one in of[role] or [role])

    @property
    def ends(self) -> tuple[str, ...]:
        """Where the model begins and ends: its embedding and its heads. Of a convolutional classifier all
        weights that are no layers: the stem and what convolves over neighbors."""
        if self.convolutional:
            return self.other_convolutions
        return (self.embed, self.head, *FAMILIES[self.family].more_heads)

    @property
    def norms(self) -> dict[str, tuple[str, ...]]:
        """`{norm of a decoder block: the linear layers that read it}`, all by full name."""
        table = FAMILIES[self.family].norms.items()
        return {
            f"{block.name}.{norm}": tuple(name for role in readers for name in block.of(role))
            for block in self.decoder_blocks
            for norm, readers in table
            if all(block.of(role) for role in readers)
        }

    @property
    def norms_after(self) -> tuple[str, ...]:
        """The norms of decoder blocks that stand behind a layer, on what it adds to the residual stream."""
        after = FAMILIES[self.family].after
        return tuple(f"{block.name}.{norm}" for block in self.decoder_blocks for norm in after)

    @property
    def routers(self) -> tuple[str, ...]:
        """The modules that choose among experts, which stay at 16 bits; () for a model without experts."""
        router = FAMILIES[self.family].router
        routed = (b.name for b in self.decoder_blocks if any(" " in role for role in b.layers))
        return tuple(f"{block}.{router}" for block in routed if router)

    @property
    def same_input(self) -> tuple[tuple[str, ...], ...]:
        """The layers of a block that read the same input and that engines make one product of: query, key and
        value; gate and up."""
        found: dict[tuple[str, str, str], list[str]] = {}
        for block in self.blocks:
            for role, name in block.layers.items():
                kind, _, expert = role.partition(" ")
                found.setdefault((block.name, _READ_TOGETHER.get(kind, role), expert), []).append(name)
        return tuple(tuple(group) for group in found.values() if len(group) > 1)

    @property
    def fused(self) -> frozenset[str]:
        """The layers that give query, key and value at once, a third of their outputs each."""
        return frozenset(block.layers["qkv"] for block in self.blocks if "qkv" in block.layers)

    @property
    def convolutional(self) -> bool:
        return FAMILIES[self.family].convolutional

    def in_place(self, layers: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
        """Returns what stands in the model for each of its layers where these linear ones compute."""
        if not self.pixelwise:
            return layers
        return {n: OverChannels(layer) if n in self.pixelwise else layer for n, layer in layers.items()}

    @property
    def kind(self) -> str:
        """What the model works on: "language", "vision" or "vision-language"."""
        return FAMILIES[self.family].kind


def family_of(model_type: str) -> str:
    """Name of the family that has this `model_type`; ValueError lists the ones there are and says how one is
    added."""
    for name, family in FAMILIES.items():
        if model_type in family.model_types:
            return name
    known = ", ".join(dict.fromkeys(t for family in FAMILIES.values() for t in family.model_types))
    if model_type in LACKING:
        raise ValueError(f"models of type {model_type!r} are not supported: {LACKING[model_type]}")
    raise ValueError(
        f"models of type {model_type!r} are not supported; supported types: {known}, and language models "
        f"wired as one of these; {ADD}"
    )


def layout_of(model: nn.Module, family: str = "") -> ModelLayout:
    """ModelLayout of a language or vision-language model of transformers, taken apart (see `unfused`), or of
    a classifier from timm; ValueError if a part that the table names is missing. Its entry in the table is
    the first of its type whose blocks have the layers and norms; family: that of a type which is in none."""
    config = getattr(model, "config", None)
    kind = type(model).__name__ if config is None else config.model_type
    first = family or family_of(kind)
    others = (name for name, entry in FAMILIES.items() if kind in entry.model_types)
    name = next((name for name in others if _has_parts(model, FAMILIES[name])), first)
    places = _places(FAMILIES[name])
    blocks = tuple(_blocks(model, places, FAMILIES[name]))
    for section, tables in places.items():
        if tables and not any(block.section == section for block in blocks):
            raise ValueError(f"there are no blocks at {' or '.join(tables)} in this model; {ADD}")
    found = FAMILIES[name]
    layers = {layer for block in blocks for layer in block.layers.values()}
    convolutions = [n for n, m in model.named_modules() if found.convolutional and isinstance(m, nn.Conv2d)]
    return ModelLayout(
        name,
        blocks,
        found.embed,
        found.final_norm,
        found.head,
        frozenset(layers.intersection(convolutions)),
        tuple(n for n in convolutions if n not in layers),
    )


def _has_parts(model: nn.Module, family: Family) -> bool:
    try:
        blocks = [b for b in _blocks(model, _places(family), family) if is_at(b.name, family.blocks)]
    except ValueError:
        return False
    wanted = [n for n, roles in family.norms.items() if all(role in family.roles for role in roles)]
    return bool(blocks) and all(submodule(model, f"{blocks[-1].name}.{norm}") is not None for norm in wanted)


def _places(family: Family) -> dict[str, dict[str, Mapping[str, str]]]:
    """`{section: {where: {role: path}}}` of all blocks."""
    decoder = {**family.between, family.blocks: family.roles}
    if family.kind != "vision-language":
        return {family.kind: decoder}
    return {"vision": dict(family.vision), "projector": dict(family.projector), "language": decoder}


def _blocks(
    model: nn.Module, places: Mapping[str, Mapping[str, Mapping[str, str]]], family: Family
) -> Iterator[Block]:
    """In the order of the model's modules, which is that of the data."""
    table = [(place, roles, section) for section, t in places.items() for place, roles in t.items()]
    for name, module in model.named_modules():
        for place, roles, section in table:
            if not is_at(name, place) or isinstance(module, nn.Identity):  # nothing to merge in this stage
                continue
            if place == family.blocks and family.dense and submodule(module, family.experts) is None:
                roles = family.dense
            layers = dict(_over_channels(module, roles)) if family.convolutional else {}
            for role, path in roles.items() if not family.convolutional else ():
                layers |= dict(_layers(module, role, path))
            full = {role: f"{name}.{path}" if path else name for role, path in layers.items()}
            for role, layer in full.items():
                if not is_linear(submodule(model, layer)):
                    lacks = f"{layer} (the {role} of {name}) is not a linear layer in this model"
                    raise ValueError(f"{lacks}; {ADD}")
            if full:
                yield Block(name, full, section)


def _over_channels(block: nn.Module, roles: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(role, path) of the layers of a stage of convolutions, in the order of the data: where there is a `*`
    in the path, those that are there and linear, with the number of their block."""
    yield from ((role, path) for role, path in roles.items() if "*" not in path)
    for inner, module in block.named_modules():
        for role, path in roles.items():
            if "*" in path and is_at(inner, path) and is_linear(module):
                yield f"{role} {inner.partition('.')[0]}", inner


def is_linear(module: nn.Module | None) -> bool:
    """Whether a module is a linear layer, or one over the channels of pictures: a convolution of 1 x 1."""
    if isinstance(module, nn.Conv2d):
        shape = (module.kernel_size, module.stride, module.groups)
        return shape == ((1, 1), (1, 1), 1) and not any(module.padding)
    return isinstance(module, nn.Linear)


def _layers(block: nn.Module, role: str, path: str) -> Iterator[tuple[str, str]]:
    """(role, path) of one layer or, where there is a `*` in the path, of that of every expert."""
    before, star, after = path.partition("*")
    if not star:
        yield role, path
        return
    experts = submodule(block, before.rstrip("."))
    for number in (key for key in getattr(experts, "_modules", {}) if key.isdecimal()):
        yield f"{role} {number}", f"{before}{number}{after}"


def is_at(name: str, place: str) -> bool:
    """Whether a module's name is that of a place in the table, where a `*` stands for one part of it."""
    return name.count(".") == place.count(".") and fnmatchcase(name, place)


def submodule(model: nn.Module, name: str) -> nn.Module | None:
    """A module by its name, None where there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
