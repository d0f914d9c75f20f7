"""Level 1: this process's memory, bounded in bytes; what was not used for the longest time goes first."""

from __future__ import annotations

from collections import OrderedDict

from workers.enrichment.cache.entry import Entry, Key


class Memory:
    """Entries, with what they would take if they were written down."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._entries: OrderedDict[Key, tuple[Entry, int]] = OrderedDict()
        self.size_bytes = 0

    def get(self, key: Key) -> Entry | None:
        """The entry under the key, fresh or not."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: Key, entry: Entry, size: int) -> None:
        """Keep the entry, and drop others until all of them fit."""
        self.drop(key)
        if size > self._limit:
            return
        self._entries[key] = (entry, size)
        self.size_bytes += size
        while self.size_bytes > self._limit:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.size_bytes -= dropped

    def drop(self, key: Key) -> None:
        """Forget the entry under the key."""
        found = self._entries.pop(key, None)
        if found is not None:
            self.size_bytes -= found[1]
