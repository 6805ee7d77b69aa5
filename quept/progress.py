"""One progress line on stderr: what is being done, how far it is, and about how long it will take. Results go
to stdout, so they mix with nothing.

A `Progress` is called with (stage, fraction), as every long function of this package does; fraction is None
where the length is unknown. On a terminal the line is redrawn in place; in a log file a line is written at
most every half minute. tqdm counts things of one kind and writes carriage returns into log files: not this.
"""

from __future__ import annotations

import math
import sys
import time
from typing import TextIO

WIDTH = 24  # characters of the bar
EVERY_SCREEN, EVERY_LOG = 0.1, 30.0  # seconds between two lines


class Progress:
    """A context manager; leaving it clears the line. `quiet` shows nothing."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None):
        self._quiet, self._stream = quiet, stream or sys.stderr
        self._live = self._stream.isatty()
        self._shown = -math.inf
        self._began: tuple[float, float] | None = None  # when the fraction was first given, and what it was

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        if self._live and self._shown > -math.inf and not self._quiet:
            self._stream.write("\r\033[K")
            self._stream.flush()

    def __call__(self, stage: str, fraction: float | None = None) -> None:
        now = time.monotonic()
        if fraction is None:
            self._began = None
        elif self._began is None or fraction < self._began[1]:
            self._began = (now, fraction)
        if self._quiet or now - self._shown < (EVERY_SCREEN if self._live else EVERY_LOG):
            return
        self._shown = now
        line = self._line(stage, fraction, now)
        self._stream.write(f"\r\033[K{line}" if self._live else f"{line}\n")
        self._stream.flush()

    def _line(self, stage: str, fraction: float | None, now: float) -> str:
        if fraction is None:
            return f"{stage} …"
        filled = round(WIDTH * fraction)
        left = ""
        start, first = self._began
        if fraction > first and now > start:
            left = f", {_clock((now - start) / (fraction - first) * (1 - fraction))} left"
        return f"[{'#' * filled}{' ' * (WIDTH - filled)}] {fraction:4.0%}{left}  {stage}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
