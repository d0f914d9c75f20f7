"""Records that wait for a time: which of the parked ones are due, and how many of them go before others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, takewhile

from telemetry.clock import Clock
from workers.stage.backpressure import Backpressure
from workers.stage.defects import Defects
from workers.stage.held import Held
from workers.stage.partition import Partition
from workers.stage.record import Record
from workers.stage.window import Window

SOON_SECONDS = 10.0
"""How soon a record has to be due for others to wait behind it here. Other records use the room of a later one."""
OVERDUE_SECONDS = 1.0
"""How long a due record has no room before the records behind it count as waiting for room too."""
PACED_AT_ONCE = 16
"""The most records of paced partitions that are handed over in a round. Records that entered a tier together are due
together, by the hundred: a new record would wait until all of them have begun."""
PACED_SHARE = 0.2
"""The share of free places that paced records have, however many others wait."""
LOOK_AGAIN_SECONDS = 0.5
"""How often a record that is not due is looked at: clocks are set."""


class Pacing:
    """Draws parked records from the window of a stage that does not share it. The Kafka thread owns it."""

    def __init__(self, pace: Backpressure, window: Window, held: Held, defects: Defects, clock: Clock) -> None:
        self._pace = pace
        self._window = window
        self._held = held
        self._defects = defects
        self._clock = clock
        self._is_paced = False
        """Whether there ever was a paced partition."""
        self._owed = 0.0
        """Places that paced records are still owed."""
        self.more_is_due = False
        """Whether there may be paced records that are due and were not handed over in the last round."""

    def paces(self, topic: str) -> bool:
        """Return whether the topic's records are paced. From the first such topic on they are drawn apart."""
        paced = self._pace.paces(topic)
        self._is_paced |= paced
        return paced

    def was_never_due(self, record: Record) -> bool:
        """Return whether no owner can have begun the record.

        A stamp from the future tells nothing: each owner counts such a record's wait from when it sees it.
        """
        return not self._is_due(record) and record.timestamp_ms <= self._clock.time() * 1000

    def draw(self, room: int) -> list[tuple[Partition, Record]]:
        """Take out up to `room` parked records that are due, and put off the partitions whose first one is not."""
        drawn = self._draw_apart(room) if self._is_paced else self._window.draw(room, self._ready)
        self._look_at_fronts()
        return drawn

    def _draw_apart(self, room: int) -> list[tuple[Partition, Record]]:
        """Take out a few paced records, which have a share of the places, and all others that there is room for.

        Where the window is full no others come, and all wait for it to empty: then paced records go like others.
        """
        if self._window.first.full or self._window.tight:
            return self._window.draw(room, self._ready)
        self._owed = min(PACED_AT_ONCE, self._owed + max(0, room) * PACED_SHARE)
        paced = self._window.draw(min(room, int(self._owed)), self._ready_if_paced)
        self._owed -= len(paced)
        others = self._window.draw(room - len(paced), self._ready_if_not_paced)
        left = min(PACED_AT_ONCE, room - len(others)) - len(paced)
        paced += self._window.draw(left, self._ready_if_paced)
        self.more_is_due = len(paced) == PACED_AT_ONCE
        return others + paced

    def _ready(self, partition: Partition, records: Sequence[Record], most: int) -> int:
        """Return how many of the first `most` records may run now."""
        if not partition.dispatchable or self._clock.monotonic() < partition.look_again:
            return 0
        due = sum(1 for _ in takewhile(self._is_due, islice(records, most)))
        return partition.horizon.allowed(records, due)

    def _ready_if_paced(self, partition: Partition, records: Sequence[Record], most: int) -> int:
        return self._ready(partition, records, most) if partition.paced else 0

    def _ready_if_not_paced(self, partition: Partition, records: Sequence[Record], most: int) -> int:
        return 0 if partition.paced else self._ready(partition, records, most)

    def _is_due(self, record: Record) -> bool:
        return self._seconds_left(record) <= 0

    def _seconds_left(self, record: Record) -> float:
        """Return how long its pace holds a record back; 0 or less where it is due."""
        try:
            due_ms = self._pace.due_ms(record)
        except Exception as error:
            self._defects.met("due_ms", record, error)
            due_ms = None
        return 0.0 if due_ms is None else due_ms / 1000 - self._clock.time()

    def _look_at_fronts(self) -> None:
        """Put off the records of partitions whose first one is not due: they take no other record's room."""
        now = self._clock.monotonic()
        for partition in self._held.partitions.values():
            if not (partition.parked and partition.dispatchable and now >= partition.look_again):
                continue
            left = self._seconds_left(self._window.next_of(partition))
            if left > 0:
                self._window.put_off_until_due(partition, soon=left <= SOON_SECONDS)
                partition.look_again = now + min(left, LOOK_AGAIN_SECONDS)
            elif left < -OVERDUE_SECONDS:
                self._window.bring_back(partition)
