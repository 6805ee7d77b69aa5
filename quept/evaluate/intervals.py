"""How sure a measured number is: standard errors of means and intervals for shares.

Both treat the samples as independent draws. Neighbouring tokens of one text are not quite that, so for
per-token measures the true error is somewhat larger.
"""

from __future__ import annotations

import math

from torch import Tensor


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of a 1-D tensor and its standard error, `std / sqrt(n)` with the unbiased std; the error of one
    sample is 0.
    """
    values = values.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return values.mean().item(), error


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval (low, high) for a share of `successes` in `n`; z = 1.96 gives 95 %.

    Unlike `p +- z * se` it stays inside [0, 1] and does not shrink to nothing at 0 or n successes (Wilson
    1927).
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a share needs 0 <= successes <= n and n >= 1, not {successes} of {n}")
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
