"""What this process holds in memory, and giving back what it does not need.

release_freed       glibc keeps what is freed for later, in pieces that no longer fit: after every uniform
                    width of a 135M model was made, half a gigabyte of nothing. `malloc_trim` walks over it
                    in 10 to 20 ms
release_weights     weights that are mapped from a file count as held once they were read, though the system
                    keeps the file's contents anyway while it has room
release_libraries   the same of code, most of which is needed once: to start, to measure

Pages that are needed again come back in microseconds. Elsewhere than on Linux with glibc there is nothing to
do.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from torch import Tensor

from quept.mapped import MADV_DONTNEED, let_go, libc

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-[x-]p \S+ \S+ [1-9]\d* .*\.so\b.*")


def resident_bytes() -> int:
    """Returns the bytes of memory that this process holds, whatever for."""
    return psutil.Process().memory_info().rss


def release_freed() -> None:
    """Gives memory that was freed back to the system."""
    trim = libc("malloc_trim")
    if trim is not None:
        trim(0)


def release_weights(weights: Iterable[Tensor]) -> None:
    """Lets go of the pages of those weights that are mapped from a file and that nobody wrote to. They stay
    what they are."""
    spans = sorted((weight.data_ptr(), weight.nbytes) for weight in weights if weight.device.type == "cpu")
    with suppress(OSError):
        for address, size in _joined(spans):
            let_go(address, size)


def _joined(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Those that follow each other in a file as one, of ascending (address, size): the page where one ends
    and the next begins lies whole in neither."""
    start = end = 0
    for address, size in spans:
        if address > end:
            yield start, end - start
            start = address
        end = max(end, address + size)
    yield start, end - start


def release_libraries() -> None:
    """Lets go of the pages of compiled code and its constants; what still runs is read again."""
    advise = libc("madvise")
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
                start, end = found
                advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)
            found = None
