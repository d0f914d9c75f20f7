"""The number of jobs to dispatch: enough to keep the engine busy, and few enough that Kafka holds the rest."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

from telemetry.clock import Clock
from workers.engines.base import EngineLoad
from workers.engines.places import least_waiting
from workers.stage.record import Record

IDLE_SHARE = 0.02
"""The share of its places that the engine may leave idle.

A queue long enough to fill these places too would delay newer, more urgent jobs.
"""
REFILL_PERIOD_SECONDS = 0.25
REFILL_MEMORY_SECONDS = 30.0
LEAD_PERIOD_SECONDS = 0.25
LEAD_MEMORY_SECONDS = 5.0


class EnginePace:
    """Implements the stage's `Backpressure`. The event loop updates the counts, and the Kafka thread reads them."""

    paced = False

    def __init__(self, load: Callable[[], EngineLoad], waiting_target: int | None, clock: Clock) -> None:
        """`load` returns the engine's load.

        `waiting_target` fixes how many jobs wait in the engine; None adapts the number.
        """
        self._load = load
        self._fixed = waiting_target
        self._refill = Refill(clock, REFILL_PERIOD_SECONDS, REFILL_MEMORY_SECONDS)
        self._lead = EnrichmentLead(clock, LEAD_PERIOD_SECONDS, LEAD_MEMORY_SECONDS)
        self._preparing = 0
        self._enriching = 0

    def room(self) -> int:
        """Return the number of jobs that the engine has room for now, including jobs that should be in enrichment.

        While the engine's queue is empty, surplus jobs in enrichment do not reduce the room: otherwise slow web pages
        would hold back jobs that are ready.
        """
        load = self._load()
        wanted = self._wanted(load) - load.waiting - self._preparing
        lead = self._lead.jobs() - self._enriching
        return max(0, wanted + (lead if load.waiting else max(0, lead)))

    def _wanted(self, load: EngineLoad) -> int:
        """Return how many jobs should wait in the engine, or be on their way there.

        With fewer jobs the engine runs dry before the next refill. With more, jobs in the engine's queue get ahead of
        newer, more urgent jobs.
        """
        if self._fixed is not None:
            return load.free + self._fixed
        return load.free + max(least_waiting(load.running), self._refill.look(load.running))

    def due_ms(self, record: Record) -> int | None:
        """Return None always, because every job is due at once."""
        return None

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """During the block, count one job as being prepared: it has reached neither enrichment nor the engine."""
        self._preparing += 1
        try:
            yield
        finally:
            self._preparing -= 1

    @contextmanager
    def enriching(self) -> Iterator[None]:
        """During the block, count one job as being enriched."""
        self._enriching += 1
        try:
            yield
        finally:
            self._enriching -= 1

    def answered(self, enrich_seconds: float) -> None:
        """Count one answered job. A job without sources has 0 `enrich_seconds`."""
        self._refill.answered()
        self._lead.answered(enrich_seconds)


class Refill:
    """Computes the length of the queue that keeps the engine's places busy between two refills.

    A refill is the arrival of the jobs that the stage dispatches after a call of `look`. A request that ends leaves its
    place idle until the next refill, unless a job waits in the engine. The next call is half an interval away on
    average, and the time until the jobs arrive is counted as another half interval. An interval is a round of the
    stage: 5 ms, or 50 ms and more on a busy broker. So an interval with `answers` answers leaves `answers - queue`
    places idle for as long as the interval lasts. The queue is the shortest one with which the intervals of the last
    `memory_seconds` leave at most IDLE_SHARE of the places idle. Answers that end together, such as answers of equal
    length, need a longer queue than answers that end one by one.

    The event loop counts answers, and only the Kafka thread calls `look`.
    """

    def __init__(self, clock: Clock, period_seconds: float, memory_seconds: float) -> None:
        self._clock = clock
        self._period_seconds = period_seconds
        self._memory_seconds = memory_seconds
        self._answered = 0
        self._counted = 0
        self._since = self._looked = self._judged = clock.monotonic()
        self._intervals: deque[tuple[float, int, float]] = deque()
        """Each interval with answers: its end, the number of answers, and its length in seconds."""
        self._queue = 0

    def answered(self) -> None:
        """Count one answer."""
        self._answered += 1

    def look(self, running: int) -> int:
        """Return the queue's length for an engine that has `running` requests in its places now.

        If a fast engine answers all its requests between two looks, `running` is 0, and the queue has to leave no place
        idle.
        """
        now, answered = self._clock.monotonic(), self._answered
        if now > self._looked:
            if answered > self._counted:
                self._intervals.append((now, answered - self._counted, now - self._looked))
            self._counted, self._looked = answered, now
        if now - self._judged >= self._period_seconds:
            self._judged = now
            while self._intervals and now - self._intervals[0][0] > self._memory_seconds:
                self._intervals.popleft()
            seconds = min(self._memory_seconds, now - self._since)
            self._queue = self._shortest(IDLE_SHARE * running * seconds)
        return self._queue

    def _shortest(self, idle: float) -> int:
        """Return the shortest queue with which the intervals leave at most `idle` place-seconds idle."""
        most_first = sorted(((count, seconds) for _, count, seconds in self._intervals), reverse=True)
        total = width = 0.0
        for (count, seconds), (following, _) in pairwise([*most_first, (0, 0.0)]):
            total += count * seconds
            width += seconds
            if total - following * width > idle:
                return min(count, math.ceil((total - idle) / width))  # rounding may give slightly more than `count`
        return 0


class EnrichmentLead:
    """The lead: the number of jobs in enrichment that supplies the engine as fast as it answers.

    Little's law gives the number: answers per second times the seconds that a job spends in enrichment, 0 for a job
    without sources. A job is counted when the engine answers it, so that the engine's speed limits the lead. The event
    loop counts jobs, and the Kafka thread reads the lead.
    """

    def __init__(self, clock: Clock, period_seconds: float, memory_seconds: float) -> None:
        self._clock = clock
        self._period_seconds = period_seconds
        self._memory_seconds = memory_seconds
        self._seconds = 0.0
        self._counted = 0.0
        self._since = clock.monotonic()
        self._mean = 0.0

    def answered(self, enrich_seconds: float) -> None:
        """Count one answer to a job that spent `enrich_seconds` in enrichment."""
        self._seconds += enrich_seconds

    def jobs(self) -> int:
        """Return the lead: an exponentially weighted mean with the time constant `memory_seconds`."""
        now = self._clock.monotonic()
        elapsed = now - self._since
        if elapsed >= self._period_seconds:
            seconds = self._seconds
            weight = 1 - math.exp(-elapsed / self._memory_seconds)
            self._mean += weight * ((seconds - self._counted) / elapsed - self._mean)
            self._counted, self._since = seconds, now
        return round(self._mean)
