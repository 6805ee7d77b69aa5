"""The family table applied to one model: its blocks, and each block's linear layers by role, all by full
name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from .families import FAMILIES, Family


@dataclass(frozen=True)
class Block:
    """One transformer block: its module name and the full names of its linear layers, `{role: name}`."""

    name: str
    layers: Mapping[str, str]


@dataclass(frozen=True)
class Anatomy:
    """What the rest of the program knows of a model's structure."""

    family: str
    blocks: tuple[Block, ...]
    embed: str
    final_norm: str
    head: str

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of all linear layers that a plan speaks of, block by block."""
        return tuple(name for block in self.blocks for name in block.layers.values())

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role there is in the family; a block has those of its place."""
        family = FAMILIES[self.family]
        return (*(role for roles in family.between.values() for role in roles), *family.roles)

    @property
    def ends(self) -> tuple[str, ...]:
        """Where the model begins and ends: its embedding and its heads."""
        return (self.embed, self.head, *FAMILIES[self.family].more_heads)

    @property
    def norms(self) -> dict[str, tuple[str, ...]]:
        """`{norm of a block: the linear layers that read it}`, all by full name."""
        table = FAMILIES[self.family].norms.items()
        return {
            f"{block.name}.{norm}": tuple(block.layers[role] for role in readers)
            for block in self.blocks
            for norm, readers in table
            if set(readers) <= set(block.layers)
        }

    @property
    def fused(self) -> frozenset[str]:
        """The layers that give query, key and value at once, a third of their outputs each."""
        return frozenset(block.layers["qkv"] for block in self.blocks if "qkv" in block.layers)

    @property
    def kind(self) -> str:
        """What the model works on: "language" or "vision"."""
        return FAMILIES[self.family].kind


def family_of(model_type: str) -> str:
    """Name of the family that has this `model_type`; ValueError lists the ones there are."""
    for name, family in FAMILIES.items():
        if model_type in family.model_types:
            return name
    known = ", ".join(t for family in FAMILIES.values() for t in family.model_types)
    raise ValueError(f"models of type {model_type!r} are not supported; supported types: {known}")


def anatomy_of(model: nn.Module) -> Anatomy:
    """Anatomy of a Hugging Face causal language model or of a classifier from timm; ValueError if a part that
    the table names is missing."""
    config = getattr(model, "config", None)
    name = family_of(type(model).__name__ if config is None else config.model_type)
    family: Family = FAMILIES[name]
    blocks = tuple(_blocks(model, family))
    if not blocks:
        raise ValueError(f"there are no blocks at {family.blocks} in this model")
    return Anatomy(name, blocks, family.embed, family.final_norm, family.head)


def _blocks(model: nn.Module, family: Family) -> Iterator[Block]:
    """In the order of the model's modules, which is that of the data."""
    table = {**family.between, family.blocks: family.roles}
    for name, module in model.named_modules():
        for place, roles in table.items():
            if not _is_at(name, place) or isinstance(module, nn.Identity):  # nothing to merge in this stage
                continue
            block = Block(name, {role: f"{name}.{path}" for role, path in roles.items()})
            for role, layer in block.layers.items():
                if not isinstance(_submodule(model, layer), nn.Linear):
                    raise ValueError(f"{layer} (the {role} of {name}) is not a linear layer in this model")
            yield block


def _is_at(name: str, place: str) -> bool:
    """Whether a module's name is that of a place in the table, where a `*` stands for one part of it."""
    return name.count(".") == place.count(".") and fnmatchcase(name, place)


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
