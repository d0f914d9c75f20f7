"""Level 1: this process's memory, bounded in bytes; the least recently used entry is evicted first."""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import astuple
from typing import Final

from workers.enrichment.cache.entry import CacheEntry, Key

_PLACE_BYTES: Final = 512
"""Approximate overhead of an entry: the key, and the entry's part of the tables."""


class Memory:
    """An LRU cache of unpacked entries, limited by their size in memory."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._entries: OrderedDict[Key, tuple[CacheEntry, int]] = OrderedDict()
        self._size = 0

    def get(self, key: Key) -> CacheEntry | None:
        """Return the entry under the key, fresh or stale."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: Key, entry: CacheEntry) -> None:
        """Store the entry, unless it exceeds the limit alone; evict others until all entries fit."""
        self.drop(key)
        size = _PLACE_BYTES + sys.getsizeof(entry) + _held_bytes(astuple(entry))
        if size > self._limit:
            return
        self._entries[key] = (entry, size)
        self._size += size
        while self._size > self._limit:
            _, (_, dropped) = self._entries.popitem(last=False)
            self._size -= dropped

    def drop(self, key: Key) -> None:
        """Drop the entry under the key."""
        found = self._entries.pop(key, None)
        if found is not None:
            self._size -= found[1]


def _held_bytes(value: object) -> int:
    """Return the size in bytes of a value and all values inside it; an object held twice counts twice."""
    held: tuple[object, ...] = ()
    if isinstance(value, dict):
        held = (*value, *value.values())
    elif isinstance(value, list | tuple):
        held = tuple(value)
    return sys.getsizeof(value) + sum(map(_held_bytes, held))
