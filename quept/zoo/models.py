"""A built-in model as a folder that `from_pretrained` or timm reads: where it lies, or made once from the
file in its entry.

`CONVERSIONS` is the table of ways to make one: recipe -> (version, function(source file, empty folder,
progress)); what stands behind a "/" in an entry's recipe is the function's last argument. Raise a version
when what its function writes changes; folders built by an older one are then built again.
"""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path

from .cache import Progress, SourceError, build_folder, cache_dir
from .catalogue import MODELS
from .sources import fetch


def _gguf_llama(source: Path, folder: Path, progress: Progress | None) -> None:
    from .gguf_llama import convert  # loads gguf and numpy, which an already built folder does not need

    convert(source, folder, progress)


def _timm_in_order(source: Path, folder: Path, progress: Progress | None, architecture: str) -> None:
    from .timm_folder import convert_in_order

    convert_in_order(source, folder, progress, architecture)


def _onnx_dinov2(source: Path, folder: Path, progress: Progress | None, architecture: str) -> None:
    from .timm_folder import convert_dinov2

    convert_dinov2(source, folder, progress, architecture)


CONVERSIONS = {
    "gguf-llama": (1, _gguf_llama),
    "timm-in-order": (1, _timm_in_order),
    "onnx-dinov2": (1, _onnx_dinov2),
}


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
    kind, *arguments = entry.recipe.split("/")
    version, conversion = CONVERSIONS[kind]
    return build_folder(
        cache_dir() / "models" / name,
        recipe=f"{entry.recipe}/{version} of {entry.source.sha256}",
        build=lambda folder: conversion(fetch(entry.source, progress), folder, progress, *arguments),
        progress=progress,
        verify=verify,
    )


def gguf_folder(file: Path, progress: Progress | None = None) -> tuple[str, str, str]:
    """(folder, title, provenance) of a GGUF file of a person's own, converted on first use and when the file
    has changed since. SourceError for one that is not read."""
    from .gguf_llama import PLAIN, kinds_in

    found, (version, conversion) = file.stat(), CONVERSIONS["gguf-llama"]
    name = f"{file.stem[:80]}-{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    folder = build_folder(
        cache_dir() / "gguf" / name,
        recipe=f"gguf-llama/{version} of {found.st_size} bytes at {found.st_mtime_ns}",
        build=lambda folder: conversion(file, folder, progress),
        progress=progress,
    )
    kinds = kinds_in(file)
    stored = ", ".join(f"{count} as {kind}" for kind, count in kinds.items())
    if set(kinds) <= set(PLAIN):
        return str(folder), file.stem, f"loaded from {file.name}, whose tensors are stored {stored}."
    provenance = (
        f"loaded from {file.name}. The full-precision reference is what that GGUF file holds, dequantized "
        f"and rounded to 16 bits, not the original weights; its tensors are stored {stored}."
    )
    return str(folder), f"{file.stem}, dequantized", provenance
