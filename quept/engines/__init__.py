"""Ways to make the weight of a layer small: one file and one entry of ENGINES each.

base          the contract
reports       what layers say of a forward pass besides their outputs
rtn           elastic round-to-nearest: every width from 2 to 8, nothing learned
quept         the same grid, moved by learned adapters and clip factors
mobiquant     nested codes: one 8-bit store, read at any depth, token by token
bitsandbytes  NF4 and LLM.int8, to compare with

A *setting* is what a plan says of a layer's weight: a width from 2 to 8, or a word of one engine: "nf4", a
depth or an average ("routed:3.5"). 16, the untouched weight, is everybody's. The table is read without
importing any engine, or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Engine

Setting = int | float | str
WIDTHS: Mapping[Setting, str] = {bits: f"W{bits}" for bits in range(2, 9)}
GRADED_WIDTHS = (3.5, 4.5, 5.5, 6.5)  # of token embeddings alone, see quept.numerics.graded


@dataclass(frozen=True)
class Entry:
    """where: "module:class" of the engine; settings: those it has, with the name a reader sees. listed: those
    that menus, charts and messages offer, all unless given: of many averages a few."""

    where: str
    settings: Mapping[Setting, str]
    listed: tuple[Setting, ...] = ()


_AVERAGES = [tenths / 10 for tenths in range(21, 80)]
_ROUTED = {f"routed:{b:g}": f"{b:g} bits a token" for b in _AVERAGES} | {
    f"routed:{b:g}/{cap}": f"{b:g} bits a token, {cap} at most" for cap in (4, 6) for b in _AVERAGES
}

ENGINES: dict[str, Entry] = {
    "rtn": Entry("quept.engines.rtn:Rtn", WIDTHS),
    "quept": Entry("quept.engines.quept:Quept", WIDTHS),
    "bitsandbytes": Entry(
        "quept.engines.bitsandbytes:BitsAndBytes",
        {"nf4": "bitsandbytes NF4", "int8": "bitsandbytes LLM.int8"},
    ),
    "mobiquant": Entry(
        "quept.engines.mobiquant:MoBiQuant",
        WIDTHS | _ROUTED,
        ("routed:2.5", "routed:3", "routed:4", "routed:5"),
    ),
}


def engine_class(name: str) -> type[Engine]:
    """Returns the class of an engine of the table."""
    module, _, attribute = ENGINES[name].where.partition(":")
    return getattr(import_module(module), attribute)


def engine_with(setting: Setting) -> str:
    """Returns the name of the first engine that has this setting; KeyError if there is none."""
    found = (name for name, entry in ENGINES.items() if setting in entry.settings)
    return next(found, None) or {}[setting]


def named_settings(listed: bool = False) -> dict[str, str]:
    """Returns the settings that are no widths, with their titles: `{"nf4": "bitsandbytes NF4", ...}`; only
    those that menus offer where `listed`."""
    return {
        setting: entry.settings[setting]
        for entry in ENGINES.values()
        for setting in (listed and entry.listed) or entry.settings
        if isinstance(setting, str)
    }
