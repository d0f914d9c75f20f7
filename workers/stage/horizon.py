"""How far ahead a partition's records may be begun, so that its commits bound how many are under way.

After a crash the next owner suspects what may have been under way. Without a bound that is a whole window of each
partition: of twelve partitions twelve times as many records as ran. So each commit says how many of the first undone
records may have been begun, and no other one is begun before the next commit: the *limit* is an offset, a margin above
the highest that was begun. The margin follows the pace, so that a commit allows twice what was begun since the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from workers.stage.record import Record

LEAST_MARGIN = 32
"""Offsets."""
MOST_MARGIN = 8_192
"""The largest window."""
_DECAY = 7 / 8
"""Of the margin, with each commit that did not need it: a quiet moment is not to cost a busy one its pace."""


class Horizon:
    """One partition's, during one assignment. The Kafka thread owns it."""

    def __init__(self, start: int) -> None:
        """`start`: offsets below may have been begun by others, and nothing from there on."""
        self._above = start
        """Behind the highest offset that was begun, or is to be."""
        self._above_before = start
        """The same when the last commit was composed."""
        self._margin = LEAST_MARGIN
        self._limit: int | None = None
        """Only offsets below may be begun. None before the first commit, without which nothing is begun at all."""
        self.held_back = False
        """Whether a record that could be begun waits for the next commit."""

    def allowed(self, records: Sequence[Record], most: int) -> int:
        """How many of the first `most` records may be begun now. They stand in the order of their offsets."""
        limit, most = self._limit, min(most, len(records))
        if limit is None or not most or records[most - 1].offset < limit:
            return most
        if records[0].offset >= limit:
            self._above = max(self._above, records[0].offset + 1)
        self.held_back = True
        return sum(1 for _ in takewhile(lambda record: record.offset < limit, records))

    def begun(self, offset: int) -> None:
        """The handler is given this record."""
        self._above = max(self._above, offset + 1)

    def next_limit(self) -> int:
        """The limit that the next commit allows."""
        return max(self._limit or 0, self._above + self._margin)

    def committed(self, limit: int) -> None:
        """The commit that allows this limit has returned."""
        used, self._above_before = self._above - self._above_before, self._above
        wanted = 2 * self._margin if self.held_back else max(2 * used, int(self._margin * _DECAY))
        self._margin = min(MOST_MARGIN, max(LEAST_MARGIN, wanted))
        self._limit, self.held_back = max(self._limit or 0, limit), False


def undone_below(limit: int, base: int, done: int) -> int:
    """How many offsets from `base` to below `limit` are not done, where `done` is the bitmap from base on."""
    width = max(0, limit - base)
    if width < done.bit_length():
        done &= (1 << width) - 1
    return width - done.bit_count()
