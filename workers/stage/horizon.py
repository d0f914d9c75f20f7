"""The horizon: an offset limit on the records that may begin before the next commit.

After a crash the next owner suspects every record that may have been running. Without a limit the owner would suspect a
whole window of each partition: with twelve partitions, twelve times as many records as ran. So each commit states how
many of the first undone records may have begun, and no other record begins before the next commit. The *limit* is an
offset, a margin above the highest record that has begun. The margin follows the pace: a commit allows twice the records
that began since the last commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from workers.stage.record import Record

LEAST_MARGIN = 32
"""The smallest margin, in offsets."""
MOST_MARGIN = 8_192
"""The largest margin, in offsets: the size of the largest window."""
_DECAY = 7 / 8
"""A commit leaves at least this share of the margin. The share is near 1, so that a lull does not limit the next
burst."""


class Horizon:
    """The limit of one partition during one assignment. Only the Kafka thread calls the methods."""

    def __init__(self, start: int) -> None:
        """`start`: earlier owners may have begun records below this offset, and none from this offset on."""
        self._above = start
        """The offset after the highest record that has begun or waits to begin."""
        self._above_before = start
        """The value of `_above` at the last commit."""
        self._margin = LEAST_MARGIN
        self._limit: int | None = None
        """Only records below this offset may begin. The value is None before the first commit."""
        self.held_back = False
        """True if only the limit keeps a record from beginning, so that a commit is needed."""

    def allowed(self, records: Sequence[Record], most: int) -> int:
        """Return how many of the first `most` records may begin now. `records` are in the order of their offsets."""
        limit, most = self._limit, min(most, len(records))
        if limit is None or not most or records[most - 1].offset < limit:
            return most
        if records[0].offset >= limit:
            self._above = max(self._above, records[0].offset + 1)
        self.held_back = True
        return sum(1 for _ in takewhile(lambda record: record.offset < limit, records))

    def begun(self, offset: int) -> None:
        """Note that the stage dispatches the record at this offset."""
        self._above = max(self._above, offset + 1)

    def next_limit(self) -> int:
        """Return the limit that the next commit allows."""
        return max(self._limit or 0, self._above + self._margin)

    def committed(self, limit: int) -> None:
        """Allow records below `limit` to begin. Call this when the commit that states this limit has returned."""
        used, self._above_before = self._above - self._above_before, self._above
        wanted = 2 * self._margin if self.held_back else max(2 * used, int(self._margin * _DECAY))
        self._margin = min(MOST_MARGIN, max(LEAST_MARGIN, wanted))
        self._limit, self.held_back = max(self._limit or 0, limit), False


def undone_below(limit: int, base: int, done: int) -> int:
    """Return how many offsets from `base` to below `limit` are not done. `done` is a bitmap that starts at `base`."""
    width = max(0, limit - base)
    if width < done.bit_length():
        done &= (1 << width) - 1
    return width - done.bit_count()
