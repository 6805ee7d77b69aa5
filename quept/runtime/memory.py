"""What this process holds in memory, and giving back what it does not need.

`release_freed`: glibc keeps what is freed for later, in pieces that no longer fit: after every uniform
width of a 135M model was made, half a gigabyte of nothing. `malloc_trim` walks over it in 10 to 20 ms.
`release_mapped`: files that are mapped into memory (weights, libraries) count as held once they were read.
The system keeps their contents anyway while it has room, so the process lets go of the pages; those that it
needs again come back in microseconds. Elsewhere than on Linux with glibc there is nothing to do.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import psutil
from torch import Tensor

MADV_DONTNEED = 4
LIBRARY = re.compile(r"\.so\b")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+) *(.*)")


def resident_bytes() -> int:
    """Returns the bytes of memory that this process holds, whatever for."""
    return psutil.Process().memory_info().rss


def release_freed() -> None:
    """Gives memory that was freed back to the system."""
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)


def release_mapped(weights: Iterable[Tensor], libraries: bool = False) -> None:
    """Lets go of the pages of files that these weights are mapped from and nobody wrote to; with `libraries`
    also of the code that ran so far. The weights stay what they are."""
    advise = _libc("madvise")
    if advise is None:
        return
    held = sorted(weight.data_ptr() for weight in weights)
    for start, size, path, writable in _unchanged():
        ours = any(start <= at < start + size for at in held)  # what we hold nobody unmaps meanwhile
        if ours or (libraries and not writable and LIBRARY.search(path)):
            advise(ctypes.c_void_p(start), ctypes.c_size_t(size), MADV_DONTNEED)


def _unchanged() -> Iterator[tuple[int, int, str, bool]]:
    """Mapped files that are as they are on disk: (start, bytes, path, whether it may be written to)."""
    try:
        text = Path("/proc/self/smaps").read_text()
    except OSError:
        return
    found = None
    for line in text.splitlines():
        if at := _MAPPING.fullmatch(line):
            start, end, rights, inode, path = at.groups()
            size = int(end, 16) - int(start, 16)
            found = (int(start, 16), size, path, "w" in rights) if inode != "0" else None
        elif found and line.startswith("Anonymous:"):
            if line.split()[1] == "0":
                yield found
            found = None


@cache
def _libc(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None
