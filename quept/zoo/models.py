"""A built-in model as a folder that `from_pretrained` or timm reads: where it lies, or made once from the
file in its entry.

`CONVERSIONS` is the table of ways to make one: recipe -> (version, function(source file, empty folder,
progress)). Raise a version when what its function writes changes; folders built by an older one are then
built again.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from .cache import Progress, SourceError, build_folder, cache_dir
from .catalogue import MODELS
from .sources import fetch


def _gguf_llama(source: Path, folder: Path, progress: Progress | None) -> None:
    from .gguf_llama import convert  # loads gguf and numpy, which an already built folder does not need

    convert(source, folder, progress)


CONVERSIONS = {"gguf-llama": (1, _gguf_llama)}


def model_folder(name: str, progress: Progress | None = None, verify: bool = False) -> Path:
    """The folder of the built-in model `name`, fetched and converted on first use.

    Every call compares the sizes of its files, and hashes those written to since; `verify=True` hashes all of
    them. What is missing or damaged is built again. Raises SourceError for an unknown name, and when the
    source cannot be had.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise SourceError(f"there is no built-in model {name!r}{hint}. Built in are: {', '.join(MODELS)}.")
    entry = MODELS[name]
    if isinstance(entry.source, Path):
        if not entry.source.is_dir():
            raise SourceError(f"{name} is not here: {entry.source} comes with a checkout of the program")
        return entry.source
    version, conversion = CONVERSIONS[entry.recipe]
    return build_folder(
        cache_dir() / "models" / name,
        recipe=f"{entry.recipe}/{version} of {entry.source.sha256}",
        build=lambda folder: conversion(fetch(entry.source, progress), folder, progress),
        progress=progress,
        verify=verify,
    )
