"""manifest.json: what an artifact is, in a form people can read. Unknown entries, other formats and newer
versions are refused with a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quept.checked import Group, Number, Whole, Width, checked, form
from quept.engines import ENGINES
from quept.files import read_json

FORMAT, FORMAT_VERSION = "quept-artifact", 4  # 2: static grids. 3: config. 4: chosen rounding
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
        data = checked(data, _FORM, str(path), ArtifactError)
        if data["method"] not in list(ENGINES):
            known = ", ".join(ENGINES)
            raise ArtifactError(f"{path}: method {data['method']!r:.80} is not known here (known: {known})")
        return cls(**data | {"layers": tuple(data["layers"]), "transforms": tuple(data["transforms"])})


_FORM = form(
    method=str,
    base=str,
    fingerprint=str,
    group=Group,
    layers=list[str],
    files=dict[str, form(sha256=str, bytes=Whole)],
    provenance=dict[str, str],
    recipe=dict[str, Any],
    widths=dict[str, list[Width]],
    transforms=list[dict[str, Any]],
    quality=dict[str, dict[str, Number]],
    config=dict[str, Any],
    format=str,
    format_version=int,
)
