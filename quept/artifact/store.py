"""An artifact in a folder: manifest.json, and safetensors beside it where the method has tensors.

`rtn`, elastic round-to-nearest, is method zero: it needs nothing beyond the base weights and the grid, and
stays the baseline for ever.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from quept.models import LoadedModel
from quept.numerics.grid import Quantised, group_size, quantise

from .manifest import FILE_NAME, ArtifactError, Manifest


@dataclass(frozen=True)
class Artifact:
    """What is needed beside the base weights to make any layer at any width."""

    manifest: Manifest

    @property
    def base(self) -> str:
        return self.manifest.base

    @property
    def group(self) -> int | str:
        return self.manifest.group

    @property
    def identity(self) -> str:
        """What numbers measured with it belong to: 64 hex digits over base weights, method, grid and tensors;
        not over where it lies."""
        m = self.manifest
        return hashlib.sha256(
            repr((m.method, m.fingerprint, m.group, sorted(f["sha256"] for f in m.files.values()))).encode()
        ).hexdigest()

    @staticmethod
    def is_one(source: str | Path) -> bool:
        """Whether `source` is a folder with an artifact in it (readable or not)."""
        return os.path.isfile(Path(source) / FILE_NAME)

    @classmethod
    def rtn(cls, loaded: LoadedModel, group: int | str = "auto") -> Artifact:
        """Round-to-nearest on this model."""
        layers = loaded.anatomy.layers
        for name in layers:
            group_size(loaded.model.get_submodule(name).in_features, group)
        provenance = {"base": loaded.provenance}
        return cls(Manifest("rtn", loaded.source, loaded.fingerprint, group, layers, {}, provenance))

    @classmethod
    def open(cls, folder: str | Path) -> Artifact:
        """Read and check an artifact; ArtifactError says in words what is wrong with it."""
        artifact = cls(Manifest.read(Path(folder)))
        artifact.verify(folder)
        return artifact

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

    def save(self, folder: str | Path) -> None:
        """Write the artifact; the manifest is renamed into place last, so a reader never sees half an
        artifact."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=FILE_NAME)
        with os.fdopen(handle, "w") as file:
            file.write(self.manifest.to_json())
        os.chmod(temporary, 0o644)  # mkstemp makes it readable to nobody else
        os.replace(temporary, folder / FILE_NAME)

    def check_base(self, loaded: LoadedModel) -> None:
        """ArtifactError unless it was made for exactly these weights."""
        if loaded.fingerprint != self.manifest.fingerprint:
            raise ArtifactError(
                f"this artifact was made for {self.base!r} with fingerprint "
                f"{self.manifest.fingerprint[:12]}…; the weights of {loaded.source!r} have "
                f"{loaded.fingerprint[:12]}…: open it with the base it was made for"
            )
        if loaded.anatomy.layers != self.manifest.layers:
            raise ArtifactError(
                f"this artifact names other layers than {self.base!r} has: calibrate again or copy it afresh"
            )

    def quantise(self, layer: str, weight: Tensor, bits: int) -> tuple[Quantised, Tensor]:
        """One layer's weight (out, in) at 2..8 bits: packed, and as values on the grid."""
        return quantise(weight, bits, group_size(weight.shape[1], self.group))
