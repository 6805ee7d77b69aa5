"""manifest.json: what an artifact is, in a form people can read. Unknown entries, other formats and newer
versions are refused in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from quept.engines import ENGINES
from quept.files import read_json

FORMAT, FORMAT_VERSION = "quept-artifact", 3  # 2: static grids of activations. 3: config
FILE_NAME = "manifest.json"


class ArtifactError(RuntimeError):
    """An artifact that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Manifest:
    """base: what `load` was given. fingerprint: of the base's weights. config: what of its config decides its
    function (`LoadedModel.config`); empty in older artifacts, which did not record it. group: columns per
    scale, or "auto" or "row". files: `{name: {"sha256", "bytes"}}` of what lies beside the manifest.
    provenance: free text entries. recipe: of a calibrated artifact, as `Recipe.to_dict` gives it. widths: the
    calibrated ones of each layer; the others are rounded to nearest. transforms: the settings of the
    record that the base is transformed with before anything is rounded. quality: `{plan name: {"kl",
    "kl_plain", "kl_rtn"}}` on held-out calibration text: as calibrated, the transformed base rounded to
    nearest, and the base itself rounded to nearest."""

    method: str
    base: str
    fingerprint: str
    group: int | str
    layers: tuple[str, ...]
    files: Mapping[str, Mapping[str, int | str]] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    widths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    transforms: tuple[Mapping[str, Any], ...] = ()
    quality: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """ArtifactError for a missing, damaged, foreign or newer manifest."""
        path = folder / FILE_NAME
        data = read_json(path, "an artifact", FORMAT, FORMAT_VERSION, ArtifactError, "format_version")
        if data["format_version"] < 3:
            data |= {"config": {}}
        missing = {f.name for f in fields(cls)} - set(data)
        unknown = set(data) - {f.name for f in fields(cls)}
        if missing or unknown:
            what = [f"without {name}" for name in sorted(missing)] + [
                f"unknown {name}" for name in sorted(unknown)
            ]
            raise ArtifactError(f"{path} is damaged: {', '.join(what)}")
        if data["method"] not in list(ENGINES):
            raise ArtifactError(
                f"{path}: method {data['method']!r} is not known here (known: {', '.join(ENGINES)})"
            )
        wrong = [name for name, sound in _SOUND.items() if not sound(data[name])]
        if wrong:
            raise ArtifactError(f"{path} is damaged: {', '.join(wrong)} cannot be read")
        return cls(**data | {"layers": tuple(data["layers"]), "transforms": tuple(data["transforms"])})


def _text(value: object) -> bool:
    return isinstance(value, str)


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _file(value: object) -> bool:
    return isinstance(value, dict) and _text(value.get("sha256")) and _number(value.get("bytes"))


_SOUND = {
    "base": _text,
    "fingerprint": _text,
    "group": lambda value: value in ("auto", "row") or (_number(value) and value > 0),
    "layers": lambda value: isinstance(value, list) and all(map(_text, value)),
    "files": lambda value: isinstance(value, dict) and all(map(_file, value.values())),
    "provenance": lambda value: isinstance(value, dict) and all(map(_text, value.values())),
    "recipe": lambda value: isinstance(value, dict),
    "config": lambda value: isinstance(value, dict),
    "widths": lambda value: isinstance(value, dict) and all(isinstance(v, list) for v in value.values()),
    "transforms": lambda value: isinstance(value, list) and all(isinstance(step, dict) for step in value),
    "quality": lambda value: isinstance(value, dict) and all(isinstance(row, dict) for row in value.values()),
}
