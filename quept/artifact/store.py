"""An artifact in a folder: manifest.json, and learned.safetensors beside it where its engine or a transform
has tensors. Those of transforms are named transform.NAME; what the others mean is the engine's own
business."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from quept.checked import quotable
from quept.engines import ENGINES, Setting, engine_class
from quept.engines.base import Engine
from quept.files import write_atomic, write_tensors
from quept.models import LoadedModel
from quept.transforms import Record, TransformError, transformed

from .manifest import FILE_NAME, ArtifactError, Manifest

TENSORS, TRANSFORM = "learned.safetensors", "transform."


@dataclass(frozen=True)
class Artifact:
    """What is needed beside the base weights to make any layer at any setting. engine: what does it, over
    what was learned; unless given, the manifest's without tensors. record: how the base is transformed
    first."""

    manifest: Manifest
    engine: Engine = field(default=None, compare=False)  # the manifest has the hash of its tensors
    record: Record | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.engine is None:
            object.__setattr__(self, "engine", engine_class(self.manifest.method).read(self.manifest, {}))

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
        if self._learned:
            read = [m.recipe.get(self.engine.recipe_part), dict(m.widths), list(m.transforms)]
            parts.append(json.dumps(read, sort_keys=True))
        return hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()

    @property
    def weights_id(self) -> str:
        """What a layer's widths are made from: the base's fingerprint where nothing is learned, else the
        identity."""
        return self.identity if self._learned else self.manifest.fingerprint

    @property
    def engines(self) -> dict[Setting, Engine]:
        """The engine of every setting: this artifact's own, then those that learn nothing and serve any
        model."""
        found = dict.fromkeys(ENGINES[self.manifest.method].settings, self.engine)
        for name, entry in ENGINES.items():
            if not engine_class(name).recipe_part:
                engine = engine_class(name).read(self.manifest, {})
                found |= {setting: engine for setting in entry.settings if setting not in found}
        return found

    @property
    def _learned(self) -> bool:
        return bool(self.engine.recipe_part or self.manifest.transforms)

    @staticmethod
    def is_one(source: str | Path) -> bool:
        """Whether `source` is a folder with an artifact in it (readable or not)."""
        return os.path.isfile(Path(source) / FILE_NAME)

    @classmethod
    def rtn(cls, loaded: LoadedModel, group: int | str = "auto") -> Artifact:
        """Round-to-nearest on this model."""
        return cls.unlearned("rtn", loaded, group)

    @classmethod
    def unlearned(cls, method: str, loaded: LoadedModel, group: int | str = "auto") -> Artifact:
        """An engine that learns nothing, on this model; ValueError for a group that is none."""
        layers, provenance = loaded.layout.layers, {"base": loaded.provenance}
        base = (loaded.source, loaded.fingerprint)
        artifact = cls(Manifest(method, *base, group, layers, {}, provenance, config=loaded.config))
        setting = next(iter(ENGINES[method].settings))
        for slot in loaded.layout.slots.values():
            artifact.engine.nbytes(*slot.weight(loaded.model).shape, setting)
        return artifact

    @classmethod
    def open(cls, folder: str | Path) -> Artifact:
        """Read and check an artifact; ArtifactError says what is wrong with it."""
        folder = Path(folder)
        manifest = Manifest.read(folder)
        _verify(manifest, folder)
        try:
            found = _read(folder / TENSORS) if TENSORS in manifest.files else {}
            theirs = {k.removeprefix(TRANSFORM): t for k, t in found.items() if k.startswith(TRANSFORM)}
            ours = {k: t for k, t in found.items() if not k.startswith(TRANSFORM)}
            engine = engine_class(manifest.method).read(manifest, ours)
            record = Record(manifest.transforms, theirs) if manifest.transforms else None
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, TransformError) as error:
            raise ArtifactError(
                f"{folder} is damaged: its tensors are not those of its recipe ({quotable(error)}); "
                "calibrate again or copy it afresh"
            ) from None
        return cls(manifest, engine, record)

    def store(self, folder: str | Path) -> Artifact:
        """Write the tensors, then the manifest that lists them; returns the artifact as it is listed.

        ArtifactError for a folder that holds an artifact already: killed between the two files, neither would
        be left whole."""
        folder = Path(folder)
        if self.is_one(folder):
            raise ArtifactError(
                f"{folder} already holds an artifact: give another folder, or delete it first"
            )
        write_tensors(folder / TENSORS, self._tensors())
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
        if self._tensors() and not os.path.isfile(folder / TENSORS):
            raise ValueError(f"save the tensors first, with Artifact.store; {folder} has none")
        write_atomic(folder / FILE_NAME, self.manifest.to_json())

    def _tensors(self) -> dict[str, Tensor]:
        theirs = self.record.tensors if self.record else {}
        return self.engine.tensors() | {TRANSFORM + name: t for name, t in theirs.items()}

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
        for name in self.manifest.layers if self._learned else ():
            if why := self.engine.misfit(name, *loaded.layout.slots[name].weight(loaded.model).shape):
                raise ArtifactError(f"this artifact is damaged at {name}: {why}; copy it afresh")

    def prepared(self, loaded: LoadedModel) -> LoadedModel:
        """The base as it is rounded: transformed, if the artifact was calibrated so. ArtifactError for
        another base."""
        self.check_base(loaded)
        if self.record is None or loaded.record is not None:
            return loaded
        try:
            return transformed(loaded, self.record)
        except TransformError as error:
            raise ArtifactError(f"the transforms of this artifact do not fit its base: {error}") from None

    @property
    def nbytes(self) -> int:
        """Bytes on disk beyond the base: what the elastic widths cost."""
        return sum(int(f["bytes"]) for f in self.manifest.files.values())


def _verify(manifest: Manifest, folder: Path) -> None:
    """Checks that every file of the manifest is there, whole and unchanged; ArtifactError if not."""
    for name, expected in manifest.files.items():
        path = folder / name
        if Path(name).name != name or name in ("", "..") or "\\" in name:
            raise ArtifactError(f"{folder} is damaged: it lists {name!r}, which lies outside its folder")
        if not os.path.isfile(path):
            raise ArtifactError(
                f"{folder} is incomplete: {name} is missing; copy it afresh or calibrate again"
            )
        if path.stat().st_size != expected["bytes"]:
            raise ArtifactError(f"{path} is truncated: {path.stat().st_size} of {expected['bytes']} bytes")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                raise ArtifactError(f"{path} is damaged: its contents are not those the manifest names")


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
