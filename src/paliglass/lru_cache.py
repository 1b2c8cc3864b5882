"""What was computed and may be asked for again: as much of it as fits, what was used last."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

__all__ = ["LRUCache"]

K = TypeVar("K")
V = TypeVar("V")


class LRUCache(Generic[K, V]):
    """Values by their keys; those used longest ago are let go of beyond `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def __getitem__(self, key: K) -> V:
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: K, value: V, num_bytes: int) -> None:
        """Adds a value, which stays at least until `trim`."""
        _, before = self._entries.pop(key, (None, 0))
        self._entries[key] = value, num_bytes
        self.num_bytes += num_bytes - before

    def trim(self) -> None:
        """Keeps to the bound."""
        while self.num_bytes > self.max_bytes:
            _, (_, num_bytes) = self._entries.popitem(last=False)
            self.num_bytes -= num_bytes
