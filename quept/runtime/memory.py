"""What this process holds in memory, and giving back what it does not need.

release_freed       glibc keeps what is freed for later, in pieces that no longer fit: after every uniform
                    width of a 135M model was made, half a gigabyte of nothing. `malloc_trim` walks over it
                    in 10 to 20 ms
release_weights     weights that are mapped from a file count as held once they were read, though the system
                    keeps the file's contents anyway while it has room
release_libraries   the same of code that was needed to start

Pages that are needed again come back in microseconds. Elsewhere than on Linux with glibc there is nothing to
do.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
import psutil
from torch import Tensor

MADV_DONTNEED = 4
IN_MEMORY, IN_SWAP, OF_A_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))  # of /proc/self/pagemap
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-[x-]p \S+ \S+ [1-9]\d* .*\.so\b.*")


def resident_bytes() -> int:
    """Returns the bytes of memory that this process holds, whatever for."""
    return psutil.Process().memory_info().rss


def release_freed() -> None:
    """Gives memory that was freed back to the system."""
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)


def release_weights(weights: Iterable[Tensor]) -> None:
    """Lets go of the pages of those weights that are mapped from a file and that nobody wrote to. They stay
    what they are."""
    advise = _libc("madvise")
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            for weight in weights:
                start = -(-weight.data_ptr() // mmap.PAGESIZE)
                count = (weight.data_ptr() + weight.nbytes) // mmap.PAGESIZE - start
                if advise and weight.device.type == "cpu" and count > 0:
                    pagemap.seek(8 * start)
                    pages = np.frombuffer(pagemap.read(8 * count), np.uint64)
                    own = (pages & (IN_MEMORY | IN_SWAP) > 0) & (pages & OF_A_FILE == 0)
                    if len(pages) == count and not own.any():
                        _let_go(advise, start * mmap.PAGESIZE, count * mmap.PAGESIZE)
    except OSError:
        return


def release_libraries() -> None:
    """Lets go of the pages of compiled code and its constants; what still runs is read again."""
    advise = _libc("madvise")
    try:
        text = Path("/proc/self/smaps").read_text()
    except OSError:
        return
    found = None
    for line in text.splitlines() if advise else ():
        if at := _MAPPING.fullmatch(line):
            found = [int(address, 16) for address in at.groups()]
        elif found and line.startswith("Anonymous:"):
            if line.split()[1] == "0":  # as it is on disk
                _let_go(advise, found[0], found[1] - found[0])
            found = None


def _let_go(advise: Callable[..., int], start: int, size: int) -> None:
    advise(ctypes.c_void_p(start), ctypes.c_size_t(size), MADV_DONTNEED)


@cache
def _libc(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None
