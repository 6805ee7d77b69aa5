"""Numbers near nothing, as people read them: the same that smallWords writes in a browser (plan.js)."""

from __future__ import annotations

LEAST = 1e-4  # what lies below it is said to do so


def small_words(x: float, digits: int = 2) -> str:
    """`digits` that count, and no powers of ten: 0.00003 is "<0.0001"."""
    return "<0.0001" if 0 < x < LEAST else f"{x:.{digits}g}"
