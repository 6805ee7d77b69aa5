"""Constraints as a file, in the words of `quept allocate`'s options: what the page's Constraints save and
load, and what `--constraints FILE` reads.

    {"format": "quept-constraints", "version": 1, "pin": {"model.layers.0.*": 8}, "floor": {"*.down_proj": 3},
     "ceiling": {"kv": 8}, "tie": "qkv", "widths": [3, 4, 6], "embeddings": [16], "kv": [4, 8],
     "activations": "as weights"}

All but the first two entries may be missing. Keys of pins, floors and ceilings are as in `Constraints`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quept.checked import AnyWidth, Width, checked, form
from quept.files import parse_json, read_bytes

from .constraints import AllocationError, Constraints, tied

if TYPE_CHECKING:
    from quept.models import ModelLayout

FORMAT, VERSION = "quept-constraints", 1
_FIELDS = {"pin": "pinned", "kv": "cache"}  # of Constraints, where the option has another name
_LIMITS = ("pin", "floor", "ceiling")
_DEFAULTS = {name: {} for name in _LIMITS} | dict.fromkeys(
    ("tie", "widths", "embeddings", "kv", "activations")
)
_FORM = form(
    format=str,
    version=int,
    tie=Literal["qkv", "block"] | None,
    activations=Width | Literal["as weights"] | None,
    embeddings=list[AnyWidth] | None,
    **dict.fromkeys(("widths", "kv"), list[Width] | None),
    **dict.fromkeys(_LIMITS, dict[str, AnyWidth]),
)


def read_constraints(text: str | bytes) -> dict[str, Any]:
    """Returns what a file says, `{option: value}`; AllocationError with a sentence for anything that is no
    such file."""
    data = parse_json(text, "a file of constraints", FORMAT, VERSION, AllocationError)
    data = checked(_DEFAULTS | data, _FORM, "this file of constraints", AllocationError)
    return {name: data[name] for name in _DEFAULTS if data[name]}


def load_constraints(path: str | Path) -> dict[str, Any]:
    """Reads a file as `read_constraints` does; AllocationError names it."""
    try:
        return read_constraints(read_bytes(path, "a file of constraints", AllocationError))
    except AllocationError as error:
        raise AllocationError(f"{path}: {error}") from None


def constraints_of(said: dict[str, Any], layout: ModelLayout) -> Constraints:
    """Returns the constraints of `{option: value}`; AllocationError as `Constraints` raises it."""
    values = {_FIELDS.get(name, name): value for name, value in said.items() if name != "tie"}
    for name in ("widths", "embeddings", "cache"):
        if name in values:
            values[name] = tuple(values[name])
    return Constraints(ties=tied(layout, said["tie"]) if "tie" in said else (), **values)
