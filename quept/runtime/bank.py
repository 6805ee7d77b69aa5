"""(layer, setting) -> weight: made once when first wanted, shared by all views, bounded in bytes, safe
between threads.

What is kept of each pair is the weight that the backend multiplies by: packed codes, or values in the compute
dtype. Of values the stored form is kept too (2..8 bits a weight), from which they can be unpacked again. When
the budget is full the least recently used weights go first, until they fill no more than WEIGHTS_SHARE of it
(all of it where nothing else is kept), so that going back and forth between two widths stays a look-up; then
stored forms, since they can be made again. A view keeps the weights it was made of: what somebody still uses
is never taken from under them, and a second request finds it again instead of making a copy. What is kept and
what is in use are both counted.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from weakref import WeakValueDictionary

from torch import Tensor

from quept.engines import Setting
from quept.engines.base import Stored

from .backends import Weight

Key = tuple[str, Setting]  # layer, setting
WEIGHTS_SHARE = 0.7


class WeightBank:
    """make(layer, setting) -> (stored, values) quantizes one layer; stored is None for the untouched one
    (16), values where they do not come with it. ready(stored, values, setting) -> weight is the backend's
    part, again(weight) -> stored its inverse, None where there is none. storage(setting): the setting under
    which a layer is stored, one for nested widths. direct(layer, setting) -> weight makes both at once, and
    nothing that is stored; None where it does not.

    Each is called once per pair for as long as the pair stays within the budget (bytes)."""

    def __init__(
        self,
        make: Callable[[str, Setting], tuple[Stored | None, Tensor | None]],
        ready: Callable[[Stored | None, Tensor | None, Setting], Weight],
        budget: int,
        storage: Callable[[Setting], Setting] = lambda setting: setting,
        again: Callable[[Weight], Stored | None] = lambda weight: None,
        direct: Callable[[str, Setting], Weight | None] = lambda layer, setting: None,
    ):
        if budget <= 0:
            raise ValueError(f"the weight bank needs a positive budget in bytes; got {budget}")
        self._make, self._ready, self._again, self._direct = make, ready, again, direct
        self._storage, self.budget = storage, budget
        self._stored: OrderedDict[Key, Stored] = OrderedDict()
        self._weights: OrderedDict[Key, Weight] = OrderedDict()
        self._alive: WeakValueDictionary[Key, Weight] = WeakValueDictionary()
        self._kept = self._kept_weights = 0
        self._lock = threading.Lock()
        self._making: dict[Key, threading.Lock] = {}
        self.filled = 0  # weights made or unpacked so far
        self.made = 0  # layers quantized so far: tells a cold switch from a warm one

    def known(self, keys: Iterable[Key]) -> list[Weight | None]:
        """The weights of many layers, as far as they are there."""
        with self._lock:
            weights, stored, found = self._weights, self._stored, []
            places: dict[Setting, Setting] = {}
            for key in keys:
                weight = weights.get(key)
                if weight is None:
                    weight = self._alive.get(key)
                else:
                    weights.move_to_end(key)
                if stored:
                    layer, setting = key
                    if setting not in places:
                        places[setting] = self._storage(setting)
                    at = layer, places[setting]
                    if at in stored:
                        stored.move_to_end(at)
                found.append(weight)
            return found

    def weight(self, layer: str, setting: Setting) -> Weight:
        """What a layer at this setting is multiplied by. Shared: never write to it."""
        key = (layer, setting)
        with self._lock:
            found, _ = self._found(key)
            if found is not None:
                return found
            turn = self._making.setdefault(
                key, threading.Lock()
            )  # kept for good: a second lock would let two in
        with turn:
            with self._lock:
                found, stored = self._found(key)
            if found is not None:
                return found
            weight = None if stored is not None else self._direct(layer, setting)
            if weight is not None:
                self.made += 1
            else:
                values = None
                if stored is None:
                    stored, values = self._make(layer, setting)
                    self.made += stored is not None
                weight = self._ready(stored, values, setting)
            with self._lock:
                self._keep(key, stored, weight)
            return weight

    def stored(self, layer: str, setting: Setting) -> Stored:
        """The layer at this setting as it is deployed."""
        with self._lock:
            weight, found = self._found((layer, setting))
        if found is None and weight is not None:
            found = self._again(weight)
        return found if found is not None else self._make(layer, setting)[0]

    def _found(self, key: Key) -> tuple[Weight | None, Stored | None]:
        at = (key[0], self._storage(key[1]))
        for kept, place in ((self._weights, key), (self._stored, at)):
            if place in kept:
                kept.move_to_end(place)
        return self._alive.get(key), self._stored.get(at)

    def _keep(self, key: Key, stored: Stored | None, weight: Weight) -> None:
        at = (key[0], self._storage(key[1]))
        replaced = not isinstance(weight, Tensor) and weight is not stored
        if stored is not None and not replaced and at not in self._stored:
            self._stored[at] = stored
            self._kept += stored.nbytes
        self.filled += 1
        self._alive[key] = weight
        if weight is not stored:
            self._weights[key] = weight
            self._kept += weight.nbytes
            self._kept_weights += weight.nbytes
        while self._kept > self.budget and (self._weights or self._stored):
            if self._weights and (self._kept_weights > WEIGHTS_SHARE * self.budget or not self._stored):
                freed = self._weights.popitem(last=False)[1].nbytes
                self._kept_weights -= freed
            else:
                freed = self._stored.popitem(last=False)[1].nbytes
            self._kept -= freed

    @property
    def kept_bytes(self) -> int:
        """Bytes the bank itself holds; at most `budget`."""
        return self._kept

    @property
    def resident_bytes(self) -> int:
        """Bytes in memory now because of the bank: what it holds and what views still use."""
        with self._lock:
            held = {id(one) for kept in (self._weights, self._stored) for one in kept.values()}
            return self._kept + sum(one.nbytes for one in self._alive.values() if id(one) not in held)
