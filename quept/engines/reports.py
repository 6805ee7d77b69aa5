"""What layers say of a forward pass besides their outputs: the bits spent on each token, say.

    found = Reports()
    with found.listen():
        logits = view(ids).logits
    found.means(), found.last()                      # {"bits per token": 3.47}

The module of a layer calls `report` in its forward. It reaches who listens in the same thread, so that two
threads that run one view hear only their own passes; where nobody listens it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

BITS = "bits per token"  # that its layers read of their weights
_LISTENER: ContextVar[Reports | None] = ContextVar("listener", default=None)


def report(name: str, values: Tensor, weights: int = 1) -> None:
    """Tells a quantity of this pass. name: for people, in lower case. values (..., tokens). weights: how much
    the layer counts beside others, its number of weights for a quantity that is spent on each."""
    listener = _LISTENER.get()
    if listener is not None:
        listener.add(name, values, weights)


class Reports:
    """What was reported while it listened, over all layers and passes."""

    def __init__(self):
        self._sums: dict[str, tuple[Tensor, float]] = {}
        self._last: dict[str, tuple[Tensor, float]] = {}

    @contextmanager
    def listen(self) -> Iterator[Reports]:
        """Hears what this thread reports inside of the block; not to be held around a `yield`."""
        token = _LISTENER.set(self)
        try:
            yield self
        finally:
            _LISTENER.reset(token)

    def add(self, name: str, values: Tensor, weights: int) -> None:
        for kept, part in ((self._sums, values), (self._last, values[..., -1])):
            total, count = kept.get(name, (0.0, 0.0))
            kept[name] = (total + weights * part.detach().double().sum(), count + weights * part.numel())

    def means(self) -> dict[str, float]:
        """Returns each quantity's mean over tokens and layers."""
        return {name: float(total) / count for name, (total, count) in self._sums.items()}

    def last(self) -> dict[str, float]:
        """Returns each quantity's mean over the layers at the last token of each pass."""
        return {name: float(total) / count for name, (total, count) in self._last.items()}
