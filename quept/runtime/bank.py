"""(layer, width) -> weight: made once when first wanted, shared by all views, bounded in bytes, safe between
threads.

Two things are kept of each pair: the packed form (what a deployed model stores, 2..8 bits a weight) and the
dense values in the dtype that the processor multiplies in. When the budget is full the least recently used
dense values go first, since they can be unpacked again, until they fill no more than DENSE_SHARE of it, so
that going back and forth between two widths stays a look-up; then packed forms, since they can be made again.
A view holds its weights strongly: what somebody still uses is never taken from under them, and a second
request finds it again through a weak reference instead of making a copy. What is kept and what is in use are
both counted.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from quept.numerics.grid import Quantized, dequantize

Key = tuple[str, int]  # layer name, bits
DENSE_SHARE = 0.7


class WeightBank:
    """make(layer, bits) -> (packed, values) builds one pair; packed is None for the untouched layer (16
    bits).

    Called once per pair for as long as the pair stays within the budget (bytes)."""

    def __init__(
        self, make: Callable[[str, int], tuple[Quantized | None, Tensor]], dtype: torch.dtype, budget: int
    ):
        if budget <= 0:
            raise ValueError(f"the weight bank needs a positive budget in bytes; got {budget}")
        self._make, self._dtype, self.budget = make, dtype, budget
        self._packed: OrderedDict[Key, Quantized] = OrderedDict()
        self._dense: OrderedDict[Key, Tensor] = OrderedDict()
        self._alive: WeakValueDictionary[Key, Tensor] = WeakValueDictionary()
        self._kept = self._kept_dense = 0
        self._lock = threading.Lock()
        self._making: dict[Key, threading.Lock] = {}
        self.filled = 0  # dense values made or unpacked so far
        self.made = 0  # pairs built from the source so far: tells a cold switch from a warm one

    def dense(self, layer: str, bits: int) -> Tensor:
        """The layer's values at this width (out, in), in the compute dtype. Shared: never write to it."""
        key = (layer, bits)
        with self._lock:
            found = self._dense.get(key)
            if found is not None:
                self._dense.move_to_end(key)
                return found
            found = self._alive.get(key)
            if found is not None:
                return found
            turn = self._making.setdefault(
                key, threading.Lock()
            )  # kept for good: a second lock would let two in
        with turn:
            with self._lock:
                found = self._alive.get(key)
                packed = self._find_packed(key)
            if found is not None:
                return found
            if packed is None:
                packed, values = self._make(layer, bits)
            else:
                values = dequantize(packed)
            dense = values.to(self._dtype)
            with self._lock:
                self._keep(key, packed, dense)
            return dense

    def packed(self, layer: str, bits: int) -> Quantized:
        """The layer at this width as it is deployed."""
        with self._lock:
            found = self._find_packed((layer, bits))
        return found if found is not None else self._make(layer, bits)[0]

    def _find_packed(self, key: Key) -> Quantized | None:
        found = self._packed.get(key)
        if found is not None:
            self._packed.move_to_end(key)
        return found

    def _keep(self, key: Key, packed: Quantized | None, dense: Tensor) -> None:
        if packed is not None and key not in self._packed:
            self._packed[key] = packed
            self._kept += packed.nbytes
            self.made += 1
        self.filled += 1
        self._dense[key] = dense
        self._alive[key] = dense
        self._kept += dense.nbytes
        self._kept_dense += dense.nbytes
        while self._kept > self.budget and (self._dense or self._packed):
            if self._dense and (self._kept_dense > DENSE_SHARE * self.budget or not self._packed):
                freed = self._dense.popitem(last=False)[1].nbytes
                self._kept_dense -= freed
            else:
                freed = self._packed.popitem(last=False)[1].nbytes
            self._kept -= freed

    @property
    def kept_bytes(self) -> int:
        """Bytes the bank itself holds; at most `budget`."""
        return self._kept

    @property
    def resident_bytes(self) -> int:
        """Bytes in memory now because of the bank: what it holds and what views still use."""
        with self._lock:
            in_use = sum(t.nbytes for key, t in self._alive.items() if key not in self._dense)
            return self._kept + in_use
