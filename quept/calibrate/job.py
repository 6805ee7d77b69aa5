"""One calibration run: a model and a method in, an artifact folder out, re-opened and checked before it is
called done.

`rtn`, round-to-nearest, learns nothing: its artifact records the model's fingerprint and the grid, and every
width is rounded from the base weights when it is first wanted. A learned method is another entry in
`METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quept.artifact import Artifact
from quept.models import LoadedModel, load

Progress = Callable[[str, float | None], None]

METHODS: dict[str, Callable[[LoadedModel, int | str], Artifact]] = {"rtn": Artifact.rtn}


class CalibrationError(RuntimeError):
    """A run that cannot start or finish; the message says why and what to type."""


def calibrate(
    source: str | Path,
    out: str | Path,
    method: str = "rtn",
    group: int | str | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Calibrate `source` (zoo name, folder or hub id) into the folder `out` and return the artifact as read
    back from there.

    group: columns per scale, "auto", "row", or None for the model's own default. A folder that holds another
    artifact is left alone. Raises CalibrationError, LoadError, ArtifactError, or ValueError for a bad
    group."""
    if method not in METHODS:
        raise CalibrationError(f"no method {method!r}; there is {', '.join(METHODS)}")
    report = progress or (lambda stage, fraction: None)
    loaded = load(source, report)
    report(f"calibrating by {method}", None)
    artifact = METHODS[method](loaded, loaded.group if group is None else group)
    if Artifact.is_one(out) and Artifact.open(out).manifest != artifact.manifest:
        raise CalibrationError(
            f"{out} already holds another artifact; give another folder, or delete that one first"
        )
    artifact.save(out)
    report("reading it back", None)
    read = Artifact.open(out)
    read.check_base(loaded)
    if read.manifest != artifact.manifest:
        raise CalibrationError(f"{out} does not read back as it was written: the disk may be full or failing")
    return read
