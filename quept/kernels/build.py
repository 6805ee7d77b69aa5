"""C sources -> one shared library: compiled once per instruction set, linked, put in place whole or not at
all.

`build(folder)` returns the library's path, and compiles only what is not there yet; its name tells the
sources, the compiler and the machine apart. BuildError says in a sentence why there is none. Only the
standard library is imported: setup.py runs this file before the package is installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

SOURCES = Path(__file__).parent / "c"
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fvisibility=default", "-fno-math-errno")
LEVELS = {  # by machine: instruction set -> what the compiler is told; every processor runs "plain"
    "x86_64": {
        "avx2": ("-mavx2", "-mfma"),
        "avx512": (
            *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
            *("-mfma", "-mprefer-vector-width=512"),
        ),
    },
    "arm64": {"dotprod": ("-march=armv8.2-a+dotprod",)},
}
PER_LEVEL = {"products": (), "rounding": ("-ffp-contract=off",)}  # sources compiled once for each of them
SECONDS = 300


class BuildError(RuntimeError):
    """The library cannot be compiled here; the message says why and what to do."""


def machine() -> str:
    """Returns the processor's family as LEVELS names it."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "aarch64": "arm64"}.get(name, name)


def source_key() -> str:
    """Returns a name for these sources and flags on this kind of machine."""
    digest = hashlib.sha256(repr((FLAGS, PER_LEVEL, LEVELS.get(machine()))).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return f"{sys.platform}-{machine()}-{digest.hexdigest()[:16]}"


def installed(package: Path = Path(__file__).parent) -> Path | None:
    """Returns the library that installing the package compiled, if these are its sources."""
    path = package / f"libquept-{source_key()}.so"
    return path if path.exists() else None


def compiler() -> tuple[str, str]:
    """Returns the C compiler and what it says of itself; BuildError where there is none."""
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        if path := shutil.which(name):
            said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
            if said.returncode == 0:
                return path, said.stdout
    raise BuildError("no C compiler was found: install gcc or clang, and start again")


def build(folder: Path, name: str | None = None) -> Path:
    """Returns the library in `folder`, compiled now if it is not there; the name tells the compiler too where
    none is given. Raises BuildError."""
    if sys.platform == "win32":
        raise BuildError("the packed kernels are built on Linux and macOS only")
    try:
        path, version = compiler()
        own = hashlib.sha256(version.encode()).hexdigest()[:8]
        target = folder / (name or f"libquept-{source_key()}-{own}.so")
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as room:
                compile_into(Path(room), path).replace(target)
        return target
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"the C compiler took more than {error.timeout:.0f} s") from error
    except OSError as error:
        raise BuildError(f"the packed kernels cannot be compiled: {error}") from error


def compile_into(
    room: Path,
    compiler: str,
    extra: tuple[str, ...] = (),
    flags: tuple[str, ...] = FLAGS,
    levels_of: str | None = None,
) -> Path:
    """Compiles every source in a folder of its own and links them there; a set of instructions that the
    compiler does not know is left out. extra: flags besides (sanitizers); levels_of: the machine that it is
    compiled for, this one unless given."""
    levels = {"plain": (), **LEVELS.get(levels_of or machine(), {})}

    def objects_at(level: str) -> list[Path] | None:
        made = []
        for name, more in PER_LEVEL.items():
            made.append(room / f"{name}-{level}.o")
            told = (*extra, *levels[level], *more, f"-DLEVEL={level}")
            if not _run(compiler, *told, *_object(name, made[-1], flags)):
                return None
        return made

    with ThreadPoolExecutor() as pool:
        objects = {
            level: made for level, made in zip(levels, pool.map(objects_at, levels), strict=True) if made
        }
    if "plain" not in objects:
        raise BuildError(f"{compiler} could not compile the packed kernels: " + _complaint(compiler))
    others = []
    for name in sorted(path.stem for path in SOURCES.glob("*.c") if path.stem not in PER_LEVEL):
        others.append(room / f"{name}.o")
        have = [f"-DHAVE_{level}" for level in objects]
        if not _run(compiler, *extra, *have, *_object(name, others[-1], flags)):
            raise BuildError(f"{compiler} could not compile {name}.c of the packed kernels")
    linked = room / "libquept.so"
    if not _run(
        compiler, *extra, "-shared", "-o", str(linked), *map(str, [*chain(*objects.values()), *others]), "-lm"
    ):
        raise BuildError(f"{compiler} could not link the packed kernels")
    return linked


def _object(name: str, made: Path, flags: tuple[str, ...]) -> tuple[str, ...]:
    return (*flags, "-c", str(SOURCES / f"{name}.c"), "-o", str(made))


def _run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=SECONDS).returncode == 0


def _complaint(compiler: str) -> str:
    command = [compiler, "-DLEVEL=plain", "-fsyntax-only", *FLAGS, str(SOURCES / "products.c")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS).stderr.strip()
    return said.splitlines()[0] if said else "it gave no reason"
