"""Level 1: this process's memory, bounded in bytes; the least recently used entry is evicted first."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import astuple
from typing import Final

from cachetools import LRUCache

from workers.enrichment.cache.entry import CacheEntry, Key

_PLACE_BYTES: Final = 512
"""Approximate memory that an entry takes besides its value: for the key, and for its place in the tables."""


class Memory:
    """An LRU cache of unpacked entries, limited by their size in memory."""

    def __init__(self, limit_bytes: int) -> None:
        self._entries: LRUCache[Key, CacheEntry] = LRUCache(limit_bytes, getsizeof=_size)

    def get(self, key: Key) -> CacheEntry | None:
        """Return the entry under the key, fresh or stale."""
        return self._entries.get(key)

    def put(self, key: Key, entry: CacheEntry) -> None:
        """Store the entry, unless it alone exceeds the limit. If space is short, evict other entries."""
        self.drop(key)
        with suppress(ValueError):  # the entry alone exceeds the limit
            self._entries[key] = entry

    def drop(self, key: Key) -> None:
        """Drop the entry under the key."""
        self._entries.pop(key, None)


def _size(entry: CacheEntry) -> int:
    return _PLACE_BYTES + sys.getsizeof(entry) + _held_bytes(astuple(entry))


def _held_bytes(value: object) -> int:
    """Return the size in bytes of a value and all values inside it; an object that occurs twice is counted twice."""
    held: tuple[object, ...] = ()
    if isinstance(value, dict):
        held = (*value, *value.values())
    elif isinstance(value, list | tuple):
        held = tuple(value)
    return sys.getsizeof(value) + sum(map(_held_bytes, held))
