"""The family table applied to one model: its blocks, and each block's linear layers by role, all by full
name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
        return tuple(FAMILIES[self.family].roles)


def family_of(model_type: str) -> str:
    """Name of the family that has this Hugging Face `model_type`; ValueError lists the ones there are."""
    for name, family in FAMILIES.items():
        if model_type in family.model_types:
            return name
    known = ", ".join(t for family in FAMILIES.values() for t in family.model_types)
    raise ValueError(f"models of type {model_type!r} are not supported; supported types: {known}")


def anatomy_of(model: nn.Module) -> Anatomy:
    """Anatomy of a Hugging Face causal language model; ValueError if a part that the table names is
    missing."""
    name = family_of(model.config.model_type)
    family: Family = FAMILIES[name]
    blocks = tuple(
        Block(
            f"{family.blocks}.{i}",
            {role: f"{family.blocks}.{i}.{path}" for role, path in family.roles.items()},
        )
        for i in range(len(model.get_submodule(family.blocks)))
    )
    for block in blocks:
        for role, layer in block.layers.items():
            if not isinstance(_submodule(model, layer), nn.Linear):
                raise ValueError(f"{layer} (the {role} of {block.name}) is not a linear layer in this model")
    return Anatomy(name, blocks, family.embed, family.final_norm, family.head)


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
