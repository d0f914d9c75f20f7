"""The times at which a tier releases its records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.topics import WRITTEN, Topics
from telemetry.clock import Clock
from workers.delivery.jump_free_clock import JumpFreeClock
from workers.delivery.retries import CLOCKS_DIFFER_MS, due_ms
from workers.stage.record import Record

NO_TIERS: Mapping[str, float] = {}


@dataclass(slots=True)
class _Front:
    """The first record of a partition that is not dispatched yet."""

    offset: int = -1
    appended_ms: int = 0
    """The record's append time by this process's jump-free clock."""
    ahead_ms: int = 0
    """Milliseconds by which the clock of the records' timestamps is ahead of this process's clock."""


class TierPace:
    """Tells a stage when the first record of a tier's partition is due.

    Only the stage's Kafka thread calls the methods.

    A tier is a queue: later records are due after the first one. Waits follow a jump-free clock: setting the wall clock
    neither delays nor releases records, unless the change lasts for minutes. If the clock of the records' timestamps is
    ahead, the first record from the future shows the difference. The difference is subtracted from the timestamps of
    later records too; otherwise each of these records would wait a full delay after the one before it. If that clock is
    behind, the header `written` corrects a record's timestamp. Otherwise a tier shorter than the difference would
    release each record at once.

    `former_tiers` maps the topics of the fleet's earlier schedule to their delays in seconds. Delivery no longer writes
    to these topics, but still reads the records that wait in them.
    """

    paced = True

    def __init__(self, topics: Topics, clock: Clock, former_tiers: Mapping[str, float] = NO_TIERS) -> None:
        self._delays = {**former_tiers, **{name: delay for delay, name in topics.tiers.items()}}
        self._clock = clock
        self._steady = JumpFreeClock(clock)
        self._fronts: dict[tuple[str, int], _Front] = {}

    def room(self) -> int:
        """Return a number that is never a limit, because only the window bounds the records."""
        return 1 << 30

    def tier_ms(self, record: Record) -> int:
        """Return the length of a record's tier in milliseconds; 0 for a record of another topic."""
        return round(1000 * self._delays.get(record.topic, 0))

    def due_ms(self, record: Record) -> int | None:
        """Return append time plus the tier's delay, in Unix milliseconds; None for a record of another topic."""
        delay = self._delays.get(record.topic)
        if delay is None:
            return None
        steady_ms, was_set = self._steady.look()
        if was_set:
            self._fronts.clear()
        set_by_ms = round(1000 * self._clock.time()) - steady_ms
        return due_ms(self._appended_ms(record, steady_ms), delay) + set_by_ms

    def _appended_ms(self, record: Record, steady_ms: int) -> int:
        front = self._fronts.setdefault((record.topic, record.partition), _Front())
        if front.offset != record.offset:
            stamped_ms = max(record.timestamp_ms, min(_written_ms(record), steady_ms))
            ahead_ms = stamped_ms - steady_ms
            front.ahead_ms = max(front.ahead_ms, ahead_ms) if ahead_ms > 0 else 0
            front.appended_ms = stamped_ms - front.ahead_ms
            front.offset = record.offset
        return front.appended_ms


def _written_ms(record: Record) -> int:
    """Return the header `written`, capped at CLOCKS_DIFFER_MS past the record's timestamp; 0 if it is absent."""
    written = record.header(WRITTEN)
    if written is None or not written.isdecimal() or len(written) > 15:
        return 0
    return min(int(written), record.timestamp_ms + CLOCKS_DIFFER_MS)
