"""The times at which a tier releases its records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.topics import WRITTEN, Topics
from telemetry.clock import Clock
from workers.delivery.retries import CLOCKS_DIFFER_MS, due_ms
from workers.stage.record import Record

NO_TIERS: Mapping[str, float] = {}

_BELIEVED_SECONDS = 300.0
"""Seconds for which a jump of the wall clock must last before JumpFreeClock follows the jump."""
_SET_SECONDS = 1.0
"""A change of at least this number of seconds is a jump; a smaller change is a correction."""


class JumpFreeClock:
    """The wall clock in Unix milliseconds, without short-lived jumps.

    The clock follows a jump after five minutes, since a process may start before its machine knows the time. Several
    threads may call `now_ms`.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.monotonic()
        self._shown = self.offset = clock.time() - self._since
        """Difference between the believed wall clock and the monotonic clock, in seconds."""

    def now_ms(self) -> int:
        """Return the present time."""
        now = self._clock.monotonic()
        offset = self._clock.time() - now
        if abs(offset - self._shown) > _SET_SECONDS:
            self._shown, self._since = offset, now
        elif now - self._since > _BELIEVED_SECONDS:
            self.offset = offset
        return round(1000 * (self.offset + now))


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

    Only the stage's Kafka thread calls the methods, except for `steady_ms`.

    A tier is a queue: later records are due after the first one. Waits follow a jump-free clock: setting the wall clock
    neither delays nor releases records, unless the change lasts for minutes. If the clock of the records' timestamps is
    ahead, the first record from the future shows the difference. The difference is subtracted from the timestamps of
    later records too; otherwise each of these records would wait a full delay after the one before it. If that clock is
    behind, or this process's clock is ahead, the header `written` corrects a record's timestamp. Otherwise a tier
    shorter than the difference would release each record at once.

    `former_tiers` maps the topics of the fleet's earlier schedule to their delays in seconds. Delivery no longer writes
    to these topics, but still reads the records that wait in them. The tiers of jobs that start later are tiers too.
    """

    paced = True

    def __init__(self, topics: Topics, clock: Clock, former_tiers: Mapping[str, float] = NO_TIERS) -> None:
        self._delays = {
            **former_tiers,
            **{name: delay for delay, name in (*topics.tiers.items(), *topics.later.items())},
        }
        self._clock = clock
        self._steady = JumpFreeClock(clock)
        self._offset = self._steady.offset
        self._fronts: dict[tuple[str, int], _Front] = {}

    def steady_ms(self) -> int:
        """Return the time by the jump-free clock. Writers note this time, because it decides when a record is due."""
        return self._steady.now_ms()

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
        steady_ms = self._steady.now_ms()
        if abs(self._steady.offset - self._offset) > _SET_SECONDS:
            self._fronts.clear()
        self._offset = self._steady.offset
        set_by_ms = round(1000 * self._clock.time()) - steady_ms
        return due_ms(self._appended_ms(record, steady_ms, delay), delay) + set_by_ms

    def _appended_ms(self, record: Record, steady_ms: int, delay: float) -> int:
        front = self._fronts.setdefault((record.topic, record.partition), _Front())
        if front.offset != record.offset:
            stamped_ms = _stamped_ms(record, steady_ms, delay)
            ahead_ms = stamped_ms - steady_ms
            front.ahead_ms = max(front.ahead_ms, ahead_ms) if ahead_ms > 0 else 0
            front.appended_ms = stamped_ms - front.ahead_ms
            front.offset = record.offset
        return front.appended_ms


def _stamped_ms(record: Record, steady_ms: int, delay: float) -> int:
    """Return the record's timestamp, or the header `written` if it is later.

    The header counts up to now, and up to CLOCKS_DIFFER_MS past the timestamp, since the writer's clock may be ahead.
    The header counts in full if the record would be due at once. Otherwise a process whose clock is ahead by an hour
    would release the records that it wrote itself, and hop them again and again.
    """
    written = record.header(WRITTEN)
    if written is None or not written.isdecimal() or len(written) > 15:
        return record.timestamp_ms
    written_ms = int(written)
    stamped_ms = max(record.timestamp_ms, min(written_ms, steady_ms, record.timestamp_ms + CLOCKS_DIFFER_MS))
    is_due = due_ms(stamped_ms, delay) <= steady_ms
    return max(stamped_ms, written_ms) if is_due and written_ms <= steady_ms else stamped_ms
