"""Pacing: draws the parked records that are due."""

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
"""If a partition's first record is due within this time, the stage also fetches the records after it. If the first is
due later, the stage does not fetch from the partition, and gives back its records first when room is short."""
OVERDUE_SECONDS = 1.0
"""How long a due record may wait for room.

After this time, its partition's records are counted as parked again, no longer as put off.
"""
LOOK_AGAIN_SECONDS = 0.5
"""The longest time between two checks of a record that is not due.

The check is repeated because an operator may set the clock.
"""


class Pacing:
    """Draws parked records from the window of a stage without a `Sharing`. Only the Kafka thread calls the methods."""

    def __init__(self, pace: Backpressure, window: Window, held: Held, defects: Defects, clock: Clock) -> None:
        self._pace = pace
        self._window = window
        self._held = held
        self._defects = defects
        self._clock = clock

    def was_never_due(self, record: Record) -> bool:
        """Return True if no owner can have begun the record, because it is not due and its timestamp is in the past.

        A timestamp in the future proves nothing: each owner measures the wait from the time at which it read the
        record.
        """
        return not self._is_due(record) and record.timestamp_ms <= self._clock.time() * 1000

    def draw(self, room: int) -> list[tuple[Partition, Record]]:
        """Remove and return up to `room` due records, and put off each partition whose first record is not due."""
        drawn = self._window.draw(room, self._ready)
        self._look_at_fronts()
        return drawn

    def _ready(self, partition: Partition, records: Sequence[Record], most: int) -> int:
        """Return how many of the first `most` records may run now."""
        if not partition.dispatchable or self._clock.monotonic() < partition.look_again:
            return 0
        due = sum(1 for _ in takewhile(self._is_due, islice(records, most)))
        return partition.horizon.allowed(records, due)

    def _is_due(self, record: Record) -> bool:
        return self._seconds_left(record) <= 0

    def _seconds_left(self, record: Record) -> float:
        """Return the seconds until a record is due; 0 or less if the record is due now."""
        try:
            due_ms = self._pace.due_ms(record)
        except Exception as error:
            self._defects.met("due_ms", record, error)
            due_ms = None
        return 0.0 if due_ms is None else due_ms / 1000 - self._clock.time()

    def _look_at_fronts(self) -> None:
        """Put off the partitions whose first record is not due, so that their records take no room.

        Bring back the partitions whose first record is overdue.
        """
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
