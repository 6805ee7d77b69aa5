"""The key-value caches of visitors' conversations between turns, so that only the new words are read: bounded
in bytes, the longest unused dropped first, forgotten with the visitor."""

from __future__ import annotations

import threading
from collections import OrderedDict

from quept.runtime.generate import Conversation
from quept.runtime.kvcache import cache_nbytes

SHELF_BYTES = 64_000_000  # keys and values kept between turns, all visitors together


class CachePool:
    """Conversations between turns, by visitor and side, at most `budget` bytes of keys and values. Safe
    between threads.

    What is taken is on lease until it is given back; what a visitor who has been forgotten gives back is not
    kept."""

    def __init__(self, budget: int = SHELF_BYTES):
        self._budget = budget
        self._kept: OrderedDict[tuple[str, int], Conversation] = OrderedDict()
        self._lent: dict[tuple[str, int], Conversation] = {}
        self._lock = threading.Lock()

    def take(self, visitor: str, side: int, key: str) -> Conversation:
        """The visitor's conversation on this side, emptied if it was held at another precision (`key`); a new
        one if there is none."""
        with self._lock:
            conversation = self._kept.pop((visitor, side), None) or Conversation(key)
            self._lent[visitor, side] = conversation
        conversation.switch(key)
        return conversation

    def give_back(self, visitor: str, side: int, conversation: Conversation) -> None:
        with self._lock:
            if self._lent.get((visitor, side)) is not conversation:
                return
            del self._lent[visitor, side]
            self._kept[visitor, side] = conversation
            while self._kept and self._bytes() > self._budget:
                self._kept.popitem(last=False)

    def forget(self, visitor: str) -> None:
        with self._lock:
            for store in (self._kept, self._lent):
                for key in [key for key in store if key[0] == visitor]:
                    del store[key]

    @property
    def nbytes(self) -> int:
        with self._lock:
            return self._bytes()

    def __len__(self) -> int:
        return len(self._kept)

    def _bytes(self) -> int:
        return sum(cache_nbytes(one.cache) for one in self._kept.values() if one.cache is not None)
