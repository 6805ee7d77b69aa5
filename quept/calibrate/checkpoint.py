"""The state of a run on disk: one safetensors file per stage, replaced as a whole, bound to its run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class Checkpoint:
    """prefix: path that the files start with; run: identity of the run, without which nothing is read."""

    def __init__(self, prefix: Path, run: str):
        self._prefix, self._run = prefix, run

    def write(self, stage: str, state: Mapping[str, Tensor]) -> None:
        """Replace the stage's state; what was there stays whole until the new one is."""
        path = self._path(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        save_file({name: t.contiguous() for name, t in state.items()}, temporary, {"run": self._run})
        os.replace(temporary, path)

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
        for path in self._prefix.parent.glob(f"{self._prefix.name}.*"):
            path.unlink()

    def _path(self, stage: str) -> Path:
        return self._prefix.with_name(f"{self._prefix.name}.{stage}.safetensors")
