"""What an artifact's tensors hold: bytes by kind, the shapes of the layers, the mean clip factors.

The base model is not opened: shapes are read off the adapters, where a layer is placed off its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from quept.artifact import Artifact
from quept.engines.mobiquant import MoBiQuant
from quept.engines.quept import CLIP_STEPS, LayerParameters, Quept
from quept.models.families import FAMILIES

_NUMBERED = re.compile(r"(?P<before>.*?)\.(?P<block>\d+)\.(?P<path>.+)")
_ROLES = {path: role for family in FAMILIES.values() for role, path in family.roles.items()}
ENDS = ("lower", "upper")


@dataclass(frozen=True)
class ClipMeans:
    """Mean clip factors of one width. roles: rows. blocks: columns. ends: for the lower and the upper end of
    the range, `[row][column]`, None where that layer does not clip."""

    bits: int
    roles: list[str]
    blocks: list[int]
    ends: tuple[list[list[float | None]], list[list[float | None]]]

    def values(self, end: int) -> list[float]:
        return [value for row in self.ends[end] for value in row if value is not None]

    @property
    def spread(self) -> float:
        """How far the largest mean is from the smallest."""
        values = [*self.values(0), *self.values(1)]
        return max(values) - min(values)


def place(layer: str) -> tuple[int, str]:
    """(block, role) of a layer, by its name; the role of a name no family has is the rest of that name."""
    match = _NUMBERED.fullmatch(layer)
    if match is None:
        return 0, layer
    return int(match["block"]), _ROLES.get(match["path"], match["path"])


def layers_of(artifact: Artifact) -> Mapping[str, LayerParameters]:
    """`{layer: what was learned of it}` of an artifact of QuEPT; none of another engine's."""
    return artifact.engine.learned if isinstance(artifact.engine, Quept) else {}


def _of_nested(engine: MoBiQuant) -> dict[str, int]:
    """`{kind: bytes}` of nested codes."""
    routes = sum(tensor.nbytes for tensor in engine.routes.tensors().values()) if engine.routes else 0
    parts = [part for layer in engine.learned.values() for part in (layer.grids, layer.branches)]
    grids, branches = (sum(p.nbytes for part in parts[i::2] for p in part.values()) for i in (0, 1))
    return {"scales and zero-points": grids, "corrections": branches, "routers and thresholds": routes}


def bytes_by_kind(artifact: Artifact) -> dict[str, int]:
    """`{kind: bytes}` of all files the manifest lists; together they are `artifact.nbytes`."""
    kinds = {"adapters": 0, "clip factors": 0, "activation grids": 0, "transform tensors": 0}
    if isinstance(artifact.engine, MoBiQuant):
        kinds |= _of_nested(artifact.engine)
    for layer in layers_of(artifact).values():
        clips = sum(codes.nbytes for codes in layer.clips.values())
        grids = sum(grid.nbytes for grid in layer.static.values())
        kinds["clip factors"] += clips
        kinds["activation grids"] += grids
        kinds["adapters"] += layer.nbytes - clips - grids
    if artifact.record:
        kinds["transform tensors"] = sum(tensor.nbytes for tensor in artifact.record.tensors.values())
    kinds["names and shapes of the tensors"] = artifact.nbytes - sum(kinds.values())
    return {kind: count for kind, count in kinds.items() if count > 0}


def shapes(artifact: Artifact) -> dict[str, tuple[int, int]] | None:
    """`{layer: (out, in)}`; None unless every layer has an adapter to read its shape off."""
    found = {name: (layer.b.shape[0], layer.a.shape[1]) for name, layer in layers_of(artifact).items()}
    whole = bool(found) and all(rows and columns for rows, columns in found.values())
    return found if whole else None


def layers_at(artifact: Artifact) -> Mapping[int, int]:
    """How many layers are calibrated at each width, `{bits: layers}`."""
    counts: dict[int, int] = {}
    for layer in layers_of(artifact).values():
        for bits in layer.widths:
            counts[bits] = counts.get(bits, 0) + 1
    return dict(sorted(counts.items()))


def clip_means(artifact: Artifact) -> list[ClipMeans]:
    """One entry for every width that clips in some layer, ascending."""
    places = {name: place(name) for name in layers_of(artifact)}
    roles = list(dict.fromkeys(role for _, role in places.values()))
    blocks = sorted({block for block, _ in places.values()})
    found = []
    for bits in sorted({bits for layer in layers_of(artifact).values() for bits in layer.clips}):
        means: dict[tuple[int, str], tuple[float, float]] = {}
        for name, layer in layers_of(artifact).items():
            if bits in layer.clips:
                low, high = (layer.clips[bits].double().mean(dim=(1, 2)) + 1) / CLIP_STEPS
                means[places[name]] = (float(low), float(high))
        ends = tuple(
            [[means[b, role][end] if (b, role) in means else None for b in blocks] for role in roles]
            for end in range(2)
        )
        found.append(ClipMeans(bits, roles, blocks, ends))  # type: ignore[arg-type]
    return found
