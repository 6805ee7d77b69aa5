"""The compiled library, loaded through ctypes: which instruction set runs, whose threads, and why there is
none.

`loaded()` returns the library or raises Missing, a sentence that the app shows. QUEPT_KERNELS names what runs
instead of the best this machine has: "off", or "plain", "avx2", "avx512", "dotprod". Threads are those of the
OpenMP runtime inside torch, as many as torch uses; where it cannot be found, one.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from .build import BuildError, build, installed

SWITCH = "QUEPT_KERNELS"


class Missing(RuntimeError):
    """There are no packed kernels here; the message says why and what to do."""


class Weight(ctypes.Structure):
    """Weight of c/weight.h: pointers and shape."""

    _fields_ = [
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("bits", c_int32),
        ("group", c_int32),
    ]


class Floats(ctypes.Structure):
    """Floats of c/weight.h: what a weight is rounded from."""

    _fields_ = [
        ("x", c_void_p),
        ("added", c_void_p),
        ("low", c_void_p),
        ("high", c_void_p),
        ("kind", c_int32),
    ]


class Pool(ctypes.Structure):
    """Pool of c/library.h: the OpenMP runtime's functions, and how many threads."""

    _fields_ = [("parallel", c_void_p), ("number", c_void_p), ("size", c_void_p), ("threads", c_int64)]


@dataclass(frozen=True)
class Library:
    """c: the functions. products: one instruction set's, as C wants it. level: its name."""

    c: ctypes.CDLL
    products: int
    level: str

    def pool(self, threads: int | None = None) -> Pool:
        """Returns the threads that a call runs in: torch's own number of them if none is given."""
        return Pool(*_openmp(), threads or torch.get_num_threads())


def loaded() -> Library:
    """Returns the library, compiled now where it has to be; raises Missing."""
    return _loaded(os.environ.get(SWITCH, ""))


def missing() -> str:
    """Returns why weights are multiplied dense here, as a sentence; "" if the kernels are there."""
    try:
        loaded()
    except Missing as error:
        return str(error)
    return ""


def loaded_at(level: str) -> Library:
    """Returns the library at one instruction set by name; Missing if this machine does not run it."""
    return _loaded(level)


def _loaded(level: str) -> Library:
    found = _look_up(level)
    if isinstance(found, str):
        raise Missing(found)
    return found


@cache
def _look_up(level: str) -> Library | str:
    """The library, or why there is none: looked for once."""
    if level == "off":
        return f"Packed kernels are switched off: unset {SWITCH} to have them."
    try:
        c = _opened(installed() or _built())
    except (BuildError, OSError) as error:
        return f"Weights are multiplied dense: {error}."
    products = c.quept_products(level.encode())
    if not products:
        return f"This machine has no instruction set {level!r}: unset {SWITCH}, or set it to plain."
    return Library(c, products, c.quept_name(products).decode())


def _built() -> Path:
    from quept.zoo.cache import cache_dir  # here, since an installed library needs nothing of it

    return build(cache_dir() / "kernels")


def _opened(path: Path) -> ctypes.CDLL:
    c = ctypes.CDLL(str(path))
    weight, pool = POINTER(Weight), POINTER(Pool)
    c.quept_products.argtypes, c.quept_products.restype = [c_char_p], c_void_p
    c.quept_name.argtypes, c.quept_name.restype = [c_void_p], c_char_p
    c.quept_pack.argtypes, c.quept_pack.restype = [pool, weight, *[c_void_p] * 6], None
    c.quept_stored.argtypes, c.quept_stored.restype = [pool, weight, *[c_void_p] * 3], None
    c.quept_to_blocks.argtypes, c.quept_to_blocks.restype = [pool, weight, c_void_p, c_void_p], None
    c.quept_differs.argtypes = [pool, weight, *[c_void_p] * 3]
    c.quept_round.argtypes = [pool, c_void_p, weight, POINTER(Floats), *[c_void_p] * 3]
    c.quept_matmul.argtypes = [pool, c_void_p, weight, c_void_p, c_int64, c_int, c_void_p]
    c.quept_unpack.argtypes, c.quept_unpack.restype = [pool, c_void_p, weight, c_void_p, c_int], None
    c.quept_rows.argtypes, c.quept_rows.restype = [weight, c_void_p, c_int64, c_void_p], None
    c.quept_fit.argtypes, c.quept_fit.restype = [c_void_p], None
    c.quept_step.argtypes = [pool, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p]
    c.quept_scores.argtypes = [pool, c_void_p, c_void_p, c_void_p, c_int64, c_void_p]
    return c


@cache
def _openmp() -> tuple[int | None, int | None, int | None]:
    """GOMP_parallel, omp_get_thread_num and omp_get_num_threads of the runtime that torch has loaded."""
    folder = Path(torch.__file__).parent / "lib"
    candidates = [*sorted(folder.glob("lib*omp*")), None]  # None: whatever this process has already
    for path in candidates:
        try:
            runtime = ctypes.CDLL(path and str(path))
            names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
            return tuple(ctypes.cast(getattr(runtime, name), c_void_p).value for name in names)
        except (OSError, AttributeError):
            continue
    return None, None, None
