"""Processes that begin at the same moment, for what they share on disk.

    answers = together(work, [("a", path), ("b", path)])  # [work("a", path), work("b", path)]

A process of its own imports the library once and gives birth to them, where the system has such processes.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

PATIENCE = 120.0  # seconds


def together(work: Callable, calls: Sequence[tuple]) -> list:
    """What `work`, a function of a module, returns for the arguments of each call, in a process each."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload(["quept.evaluate"])
    start = context.Barrier(len(calls), timeout=PATIENCE)
    with ProcessPoolExecutor(len(calls), context, initializer=start.wait) as processes:
        return [answer.result(PATIENCE) for answer in [processes.submit(work, *call) for call in calls]]
