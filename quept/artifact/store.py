"""An artifact in a folder: manifest.json, and safetensors beside it where the method has tensors.

rtn     elastic round-to-nearest, method zero: nothing beyond the base weights and the grid
quept   learned.safetensors: per layer an adapter and clip factors (see parameters); transform tensors, if
        any, are in it too, as transform.NAME
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quept.files import write_atomic, write_tensors
from quept.models import LoadedModel
from quept.numerics.adapters import RankSchedule
from quept.numerics.grid import Quantized, group_size, quantize
from quept.transforms import Record, TransformError, apply

from .manifest import FILE_NAME, ArtifactError, Manifest
from .parameters import LayerParameters

TENSORS, TRANSFORM = "learned.safetensors", "transform."


@dataclass(frozen=True)
class Artifact:
    """What is needed beside the base weights to make any layer at any width. learned: `{layer: what was
    learned of it}`, empty for rtn. record: how the base is transformed first."""

    manifest: Manifest
    learned: Mapping[str, LayerParameters] = field(default_factory=dict, compare=False)  # the manifest has
    record: Record | None = field(default=None, compare=False)  # their hash

    @property
    def base(self) -> str:
        return self.manifest.base

    @property
    def group(self) -> int | str:
        return self.manifest.group

    @property
    def identity(self) -> str:
        """What numbers measured with it belong to: 64 hex digits over base weights, method, grid, tensors and
        how they are read (ranks, widths, transforms); not over where it lies."""
        m = self.manifest
        parts = [m.method, m.fingerprint, m.group, sorted(f["sha256"] for f in m.files.values())]
        if m.method != "rtn":
            read = [m.recipe.get("adapters"), dict(m.widths), list(m.transforms)]
            parts.append(json.dumps(read, sort_keys=True))
        return hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()

    @property
    def weights_id(self) -> str:
        """What a layer's widths are made from: the base's fingerprint for rtn, else the identity."""
        return self.manifest.fingerprint if self.manifest.method == "rtn" else self.identity

    @staticmethod
    def is_one(source: str | Path) -> bool:
        """Whether `source` is a folder with an artifact in it (readable or not)."""
        return os.path.isfile(Path(source) / FILE_NAME)

    @classmethod
    def rtn(cls, loaded: LoadedModel, group: int | str = "auto") -> Artifact:
        """Round-to-nearest on this model."""
        layers = loaded.layout.layers
        for name in layers:
            group_size(loaded.model.get_submodule(name).in_features, group)
        provenance = {"base": loaded.provenance}
        base = (loaded.source, loaded.fingerprint)
        return cls(Manifest("rtn", *base, group, layers, {}, provenance, config=loaded.config))

    @classmethod
    def open(cls, folder: str | Path) -> Artifact:
        """Read and check an artifact; ArtifactError says in words what is wrong with it."""
        folder = Path(folder)
        artifact = cls(Manifest.read(folder))
        artifact.verify(folder)
        if artifact.manifest.method == "rtn":
            return artifact
        try:
            return _with_tensors(artifact.manifest, folder / TENSORS)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise ArtifactError(
                f"{folder} is damaged: its tensors are not those of its recipe ({error}); calibrate again or "
                "copy it afresh"
            ) from None

    def verify(self, folder: str | Path) -> None:
        """Every file that the manifest lists is there, whole and unchanged."""
        for name, expected in self.manifest.files.items():
            path = Path(folder) / name
            if Path(name).name != name or name in ("", "..") or "\\" in name:
                raise ArtifactError(f"{folder} is damaged: it lists {name!r}, which lies outside its folder")
            if not os.path.isfile(path):
                raise ArtifactError(
                    f"{folder} is incomplete: {name} is missing; copy it afresh or calibrate again"
                )
            if path.stat().st_size != expected["bytes"]:
                raise ArtifactError(
                    f"{path} is truncated: {path.stat().st_size} of {expected['bytes']} bytes"
                )
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    raise ArtifactError(f"{path} is damaged: its contents are not those the manifest names")

    def store(self, folder: str | Path) -> Artifact:
        """Write the tensors, then the manifest that lists them; returns the artifact as it is listed.

        ArtifactError for a folder that holds an artifact already: killed between the two files, neither would
        be left whole."""
        folder = Path(folder)
        if self.is_one(folder):
            raise ArtifactError(
                f"{folder} already holds an artifact: give another folder, or delete it first"
            )
        tensors = {k: t for name, layer in self.learned.items() for k, t in layer.tensors(name).items()}
        if self.record:
            tensors |= {TRANSFORM + name: t.contiguous() for name, t in self.record.tensors.items()}
        write_tensors(folder / TENSORS, tensors)
        with (folder / TENSORS).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        listed = {TENSORS: {"sha256": digest, "bytes": (folder / TENSORS).stat().st_size}}
        artifact = replace(self, manifest=replace(self.manifest, files={**self.manifest.files, **listed}))
        artifact.save(folder)
        return artifact

    def save(self, folder: str | Path) -> None:
        """Write the manifest; tensors, if the method has any, are in place before. It is renamed into place
        last, so a reader never sees half an artifact."""
        folder = Path(folder)
        if self.manifest.method != "rtn" and not os.path.isfile(folder / TENSORS):
            raise ValueError(f"save the tensors first, with Artifact.store; {folder} has none")
        write_atomic(folder / FILE_NAME, self.manifest.to_json())

    def check_base(self, loaded: LoadedModel) -> None:
        """ArtifactError unless it was made for exactly these weights, read as this config says."""
        if loaded.fingerprint != self.manifest.fingerprint:
            raise ArtifactError(
                f"this artifact was made for {self.base!r} with fingerprint "
                f"{self.manifest.fingerprint[:12]}…; the weights of {loaded.source!r} have "
                f"{loaded.fingerprint[:12]}…: open it with the base it was made for"
            )
        made_for = self.manifest.config
        for name in sorted(made_for.keys() & loaded.config.keys()):  # others come and go with transformers
            if made_for[name] != loaded.config[name]:
                raise ArtifactError(
                    f"this artifact was made for a model whose config says {name}: {made_for[name]}; that of "
                    f"{loaded.source!r} says {loaded.config[name]}: open it with the base it was made for"
                )
        if loaded.layout.layers != self.manifest.layers:
            raise ArtifactError(
                f"this artifact names other layers than {self.base!r} has: calibrate again or copy it afresh"
            )

    def prepared(self, loaded: LoadedModel) -> LoadedModel:
        """The base as it is rounded: transformed, if the artifact was calibrated so. ArtifactError for
        another base."""
        self.check_base(loaded)
        if self.record is None or loaded.record is not None:
            return loaded
        try:
            return apply(loaded, self.record)
        except TransformError as error:
            raise ArtifactError(f"the transforms of this artifact do not fit its base: {error}") from None

    def quantize(self, layer: str, weight: Tensor, bits: int) -> tuple[Quantized, Tensor]:
        """One layer's weight (out, in) at 2..8 bits: packed, and as values on the grid."""
        group = group_size(weight.shape[1], self.group)
        if layer in self.learned:
            return self.learned[layer].quantize(weight, bits, group)
        return quantize(weight, bits, group)

    def static(self, layer: str) -> Mapping[int, Tensor]:
        """Grids of a layer's activations, `{bits: (2, sites)}`; none where they are rounded per token."""
        return self.learned[layer].static if layer in self.learned else {}

    @property
    def nbytes(self) -> int:
        """Bytes on disk beyond the base: what the elastic widths cost."""
        return sum(int(f["bytes"]) for f in self.manifest.files.values())


def _with_tensors(manifest: Manifest, path: Path) -> Artifact:
    """The artifact with what `path` holds; raises for names, types or shapes that the manifest does not lead
    to expect."""
    adapters = manifest.recipe["adapters"]
    schedule = RankSchedule(tuple(map(tuple, adapters["groups"])), tuple(adapters["steps"]))
    tensors: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a dict)
            layer, part = _place(key)
            tensors.setdefault(layer, {})[part] = file.get_tensor(key)
    transform = tensors.pop(TRANSFORM, {})
    record = Record(manifest.transforms, transform) if manifest.transforms else None
    if set(tensors) - set(manifest.layers):
        raise ValueError(f"unknown layer {min(set(tensors) - set(manifest.layers))}")
    learned = {
        layer: _parameters(schedule, tensors.get(layer, {}), tuple(manifest.widths.get(layer, ())))
        for layer in manifest.layers
    }
    return Artifact(manifest, learned, record)


def _place(key: str) -> tuple[str, str]:
    """(layer, part) of a tensor's name: "b", "a", "clip.4", "static.4", or of a transform its own name."""
    if key.startswith(TRANSFORM):
        return TRANSFORM, key[len(TRANSFORM) :]
    layer, _, part = key.rpartition(".")
    if part.isdigit():
        layer, _, kind = layer.rpartition(".")
        part = f"{kind}.{part}"
    return layer, part


def _parameters(
    schedule: RankSchedule, parts: Mapping[str, Tensor], widths: tuple[int, ...]
) -> LayerParameters:
    empty = torch.zeros(0, 0, dtype=torch.float16)
    b, a = parts.get("b", empty), parts.get("a", empty)
    if odd := [part for part in parts if part.partition(".")[0] not in ("b", "a", "clip", "static")]:
        raise ValueError(f"unknown tensor {odd[0]}")
    clips, static = (
        {int(key.partition(".")[2]): t for key, t in parts.items() if key.startswith(kind)}
        for kind in ("clip.", "static.")
    )
    if schedule.total and widths and not b.shape[1] == a.shape[0] == schedule.total:
        raise ValueError(f"adapters of rank {b.shape[1]} and {a.shape[0]}, {schedule.total} expected")
    if any(t.dtype != torch.uint8 or t.ndim != 3 or len(t) != 2 for t in clips.values()):
        raise ValueError("clip factors of another form")
    if not all(map(_is_grid, static.values())):
        raise ValueError("static grids of another form")
    return LayerParameters(schedule, b, a, clips, widths, static)


def _is_grid(t: Tensor) -> bool:
    """Whether these are scales and zero-points: (2, sites)."""
    if t.dtype != torch.float32 or t.ndim != 2 or len(t) != 2 or t.shape[1] not in (1, 4):
        return False
    scale, zero = t
    return bool(t.isfinite().all() and (scale > 0).all() and (zero >= 0).all() and (zero < 256).all())
