"""Pages of files that are mapped into memory: they count as held once they were read, though the system keeps
what is in a file anyway while it has room.

let_go(address, size)   gives back the pages there, which come back in microseconds when they are needed
                        again; not where one of them was written to
passing(files)          while it runs, gives back what was read of these files, again and again: a checkpoint
                        that is converted as it is read (from 32 bits, expert by expert) lies in memory once;
                        where it is converted in parts, what was freed of these too

`let_go` is for pages that its caller keeps mapped: whatever else lies there is lost. `passing` cannot know
that of a file that another thread reads and closes, so it asks the system to put the pages away (Linux 5.4
and later), which loses nothing whatever has taken their place; they are then read from the disk again.

Elsewhere than on Linux there is nothing to do.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np

MADV_DONTNEED, MADV_PAGEOUT = 4, 21
IN_MEMORY, IN_SWAP, OF_A_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))  # of /proc/self/pagemap
EVERY = 0.01  # seconds, while files are read


def let_go(address: int, size: int, advice: int = MADV_DONTNEED) -> None:
    """Gives back the pages that lie whole between `address` and `size` bytes behind it, if none is another's
    than a file's. OSError where the system does not say."""
    start = -(-address // mmap.PAGESIZE)
    count = (address + size) // mmap.PAGESIZE - start
    advise = libc("madvise")
    if advise is None or count <= 0:
        return
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(8 * start)
        pages = np.frombuffer(pagemap.read(8 * count), np.uint64)
    own = (pages & (IN_MEMORY | IN_SWAP) > 0) & (pages & OF_A_FILE == 0)
    if len(pages) == count and not own.any():
        advise(ctypes.c_void_p(start * mmap.PAGESIZE), ctypes.c_size_t(count * mmap.PAGESIZE), advice)


@contextmanager
def passing(files: Iterable[str | Path], in_parts: bool = False) -> Iterator[None]:
    """While the block runs, what it reads of these files is given back soon after; in_parts: what it frees,
    which glibc would keep, as well."""
    names, done = {os.path.realpath(file) for file in files}, threading.Event()
    trim = libc("malloc_trim") if in_parts else None

    def watch() -> None:
        pause = EVERY
        while not done.wait(pause):
            began = time.perf_counter()
            with suppress(OSError):
                for address, size in _mapped(names):
                    let_go(address, size, MADV_PAGEOUT)
            if trim is not None:
                trim(0)
            pause = max(EVERY, 2 * (time.perf_counter() - began))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _mapped(names: set[str]) -> Iterator[tuple[int, int]]:
    """(address, size) of where these files are mapped."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6 and fields[5] in names:
                start, end = (int(address, 16) for address in fields[0].split("-"))
                yield start, end - start


@cache
def libc(name: str) -> Callable[..., int] | None:
    """A function of the C library, None where there is none of that name."""
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None
