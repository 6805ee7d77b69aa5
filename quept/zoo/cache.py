"""Where fetched and converted files are kept, and how a folder there comes to be whole or not at all.

`cache_dir()` is the one place everything goes; `QUEPT_CACHE` moves it. `build_folder(folder, recipe, build)`
returns a folder that `build` filled: built beside its final place, described by a manifest
(`quept-cache.json`: size, sha256 and modification time of every file), renamed into place. It promises:

- a reader sees the finished folder or none; a process killed half-way leaves only a `.building` folder, which
  the next build of the same name clears away;
- two processes asking together build once: the second waits on a file lock and then finds the result;
- a folder that lost a file, was cut short, was written to since, or was built by another recipe is built
  again. Sizes are compared at every opening; contents are hashed when a file's modification time moved, or
  always with `verify=True`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import platformdirs

from quept.files import FileError

MANIFEST = "quept-cache.json"
FORMAT_VERSION = 1

Progress = Callable[[str, float | None], None]


class SourceError(RuntimeError):
    """A built-in model or text could not be had; the message says why and what to type."""


def cache_dir() -> Path:
    """`QUEPT_CACHE` where set, else this system's cache folder for the user. Not created here."""
    moved = os.environ.get("QUEPT_CACHE")
    return Path(moved).expanduser().absolute() if moved else Path(platformdirs.user_cache_dir("quept", False))


def say(progress: Progress | None, stage: str, fraction: float | None = None) -> None:
    """Report to `progress` if there is one. `fraction` is None where the length of the work is unknown."""
    if progress is not None:
        progress(stage, fraction)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(name: str, progress: Progress | None = None) -> Iterator[None]:
    """Hold the cache's lock `name`, across threads and processes; it falls when its holder dies."""
    with writing():
        folder = cache_dir() / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            say(progress, f"waiting for another process that is fetching {name}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def build_folder(
    folder: Path,
    recipe: str,
    build: Callable[[Path], None],
    progress: Progress | None = None,
    verify: bool = False,
) -> Path:
    """Return `folder`, made by `build(empty_folder)` unless it is already there, whole and of this `recipe`.

    `recipe` names everything the result depends on (the source's sha256 and the version of the conversion):
    another recipe means another build. Raises SourceError when the cache cannot be written, and whatever
    `build` raises.
    """
    if fault(folder, recipe, verify) is None:
        return folder
    with locked(folder.name, progress):
        found = fault(folder, recipe, verify)
        if found is None:
            return folder
        if folder.exists():
            say(progress, f"{folder.name}: {found}; building it again")
        with writing():
            building = emptied(folder.with_name(f".{folder.name}.building"))
        with writing():
            build(building)
            _write_manifest(building, recipe)
            old = folder.with_name(f".{folder.name}.old")
            remove(old)
            if folder.exists():
                os.rename(folder, old)
            os.rename(building, folder)
            remove(old)
    return folder


def fault(folder: Path, recipe: str, verify: bool = False) -> str | None:
    """What is wrong with a built folder, as a sentence, or None if it may be used."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        version, built_by, files = manifest["format_version"], manifest["recipe"], manifest["files"]
        expected = {name: (f["bytes"], f["mtime_ns"], f["sha256"]) for name, f in files.items()}
    except FileNotFoundError:
        return "not built yet"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is unreadable"
    if version != FORMAT_VERSION or built_by != recipe:
        return "it was built by another version of quept"
    for name, (size, mtime_ns, sha256) in expected.items():
        try:
            found = (folder / name).stat()
            if found.st_size != size:
                return f"{name} has {found.st_size:,} bytes instead of {size:,}"
            if (verify or found.st_mtime_ns != mtime_ns) and sha256_of(folder / name) != sha256:
                return f"{name} is damaged: its sha256 is not the recorded one"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _write_manifest(folder: Path, recipe: str) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        found = path.stat()
        entry = {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": sha256_of(path)}
        files[path.relative_to(folder).as_posix()] = entry
    manifest = {"format": "quept-cache", "format_version": FORMAT_VERSION, "recipe": recipe, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


def emptied(folder: Path) -> Path:
    remove(folder)
    folder.mkdir(parents=True)
    return folder


def remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turn a cache that cannot be written (full, read-only, not a folder) into words."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, SafetensorError) and "os error" not in str(error):
            raise  # of what it read
        raise SourceError(
            f"{FileError(cache_dir(), error)}. "
            "Point QUEPT_CACHE at a folder you can write to, with 1 GB free."
        ) from error
