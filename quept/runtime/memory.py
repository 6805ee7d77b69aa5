"""Give memory that was freed back to the system.

glibc keeps what is freed for later, in pieces that no longer fit: after every uniform width of a 135M model
was made, half a gigabyte of nothing. `malloc_trim` walks over it and takes 10 to 20 ms. Elsewhere (musl,
macOS, Windows) there is nothing to do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def release_freed() -> None:
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None
