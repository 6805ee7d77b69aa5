"""The state of a run on disk: one safetensors file per stage, replaced as a whole, bound to its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from quept.files import write_tensors


class Checkpoint:
    """prefix: path that the files start with; run: identity of the run, without which nothing is read."""

    def __init__(self, prefix: Path, run: str):
        self._prefix, self._run = prefix, run

    def write(self, stage: str, state: Mapping[str, Tensor]) -> None:
        """Replace the stage's state; what was there stays whole until the new one is."""
        write_tensors(self._path(stage), state, {"run": self._run})

    def read(self, stage: str) -> dict[str, Tensor] | None:
        """What was written last, or None where there is nothing of this run."""
        try:
            with safe_open(self._path(stage), "pt") as file:
                if (file.metadata() or {}).get("run") != self._run:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError):
            return None

    def remove(self) -> None:
        """Delete all of the run's states."""
        for pattern in (f"{self._prefix.name}.*", ".*.tmp"):  # and what a killed run was writing
            for path in self._prefix.parent.glob(pattern):
                path.unlink()

    def _path(self, stage: str) -> Path:
        return self._prefix.with_name(f"{self._prefix.name}.{stage}.safetensors")
