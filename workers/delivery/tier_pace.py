"""When a tier lets go of its records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.topics import Topics
from telemetry.clock import Clock
from workers.delivery.retries import due_ms
from workers.stage.record import Record

NO_TIERS: Mapping[str, float] = {}

_BELIEVED_SECONDS = 300.0
"""For how long a wall clock that was set has to go on from there before it is believed."""
_SET_SECONDS = 1.0
"""From which on a clock has been set, and not only corrected."""


class _SteadyWall:
    """The wall clock without its jumps, in Unix milliseconds.

    A jump is believed after a while: a process may have been started before its machine knew the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.monotonic()
        self._believed = self._shown = clock.time() - self._since

    def look(self) -> tuple[int, bool]:
        """What it shows now, and whether it was set since the last look."""
        now = self._clock.monotonic()
        offset, was = self._clock.time() - now, self._believed
        if abs(offset - self._shown) > _SET_SECONDS:
            self._shown, self._since = offset, now
        elif now - self._since > _BELIEVED_SECONDS:
            self._believed = offset
        return round(1000 * (self._believed + now)), abs(self._believed - was) > _SET_SECONDS


@dataclass(slots=True)
class _Front:
    """The record at the front of one partition: the first that is not dispatched."""

    offset: int = -1
    appended_ms: int = 0
    """On our steady clock."""
    ahead_ms: int = 0
    """By how much the clock that stamps the records is found to be ahead of ours."""


class TierPace:
    """Tells a stage when the first record of a tier's partition is due. Called on the stage's Kafka thread only.

    A tier is a queue: when its first record is not due, nothing behind it is. Waiting goes by a steady clock: setting
    the wall clock neither holds records up nor lets them go, unless it stays so for minutes. Where the clock that
    stamps records is ahead of it, the first record from the future shows by how much, and those behind are moved by as
    much, so that they do not wait for one another's full delay.

    `former_tiers` are topics, with their delays in seconds, of a schedule that the fleet had before: nothing is put
    there any more, and what waits there still is taken out.
    """

    def __init__(self, topics: Topics, clock: Clock, former_tiers: Mapping[str, float] = NO_TIERS) -> None:
        self._delays = {**former_tiers, **{name: delay for delay, name in topics.tiers.items()}}
        self._clock = clock
        self._steady = _SteadyWall(clock)
        self._fronts: dict[tuple[str, int], _Front] = {}

    def room(self) -> int:
        """The window's own bound is enough."""
        return 1 << 30

    def tier_ms(self, record: Record) -> int:
        """How long the tier is in which a record has waited; 0 for one of another topic."""
        return round(1000 * self._delays.get(record.topic, 0))

    def due_ms(self, record: Record) -> int | None:
        """Its append time plus the tier's constant, as Unix milliseconds; None for a record of another topic."""
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
            ahead_ms = record.timestamp_ms - steady_ms
            front.ahead_ms = max(front.ahead_ms, ahead_ms) if ahead_ms > 0 else 0
            front.appended_ms = record.timestamp_ms - front.ahead_ms
            front.offset = record.offset
        return front.appended_ms
