"""A transformed model whose weights lie in a file of the cache, made once, and are mapped into memory:
rotating a 135M model takes seconds, and its weights would take 330 MB that nothing else can use.

The file is known by the model's identity and the record's. Small models are transformed where they are, and
so is every model where the cache cannot be written.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from quept.models import LoadedModel
from quept.zoo.cache import SourceError, build_folder, cache_dir

from .apply import apply
from .record import Record

SMALL = 32_000_000  # bytes
KEPT = 4  # transformed models that the cache keeps, those used last
VERSION = 1  # raised when a step computes something else
WEIGHTS = "weights.safetensors"


def transformed(loaded: LoadedModel, record: Record) -> LoadedModel:
    """What `apply` returns; the same bits."""
    if sum(p.nbytes for p in loaded.model.parameters()) < SMALL:
        return apply(loaded, record)
    known = f"{loaded.identity} {record.identity}"
    folder = cache_dir() / "transformed" / hashlib.sha256(known.encode()).hexdigest()[:32]
    try:
        build_folder(folder, f"transformed/{VERSION} {known}", lambda empty: _write(loaded, record, empty))
        with safe_open(folder / WEIGHTS, "pt") as file:
            made = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except (SourceError, SafetensorError, OSError):
        return apply(loaded, record)
    _make_room(folder)
    return apply(loaded, record, made)


def _write(loaded: LoadedModel, record: Record, folder: Path) -> None:
    shared = {id(p) for p in loaded.model.parameters()}
    new = {name: p.data for name, p in apply(loaded, record).model.named_parameters() if id(p) not in shared}
    save_file(new, folder / WEIGHTS)


def _make_room(used: Path) -> None:
    """Marks one as used, and removes those that were not for longest."""
    with suppress(OSError):
        os.utime(used)
        folders = (path for path in used.parent.iterdir() if path.is_dir())
        for old in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
