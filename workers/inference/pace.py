"""The number of jobs to dispatch: enough to keep the engine busy, and few enough that Kafka holds the rest."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from telemetry.clock import Clock
from workers.engines.base import EngineLoad
from workers.stage.record import Record

MARGIN = 8
"""Jobs to keep waiting in the engine beyond the answers that it gives during a refill; at most as many as run."""
RATE_MEMORY_SECONDS = 1.0
DELAY_MEMORY_SECONDS = 30.0
LEAD_PERIOD_SECONDS = 0.25
LEAD_MEMORY_SECONDS = 5.0


class EnginePace:
    """Implements the stage's `Backpressure`. The event loop updates the counts, and the Kafka thread reads them."""

    paced = False

    def __init__(self, load: Callable[[], EngineLoad], waiting_target: int | None, clock: Clock) -> None:
        """`load` is the engine's. `waiting_target` fixes the jobs that wait in the engine; None adapts their number."""
        self._load = load
        self._fixed = waiting_target
        self._refill = Refill(clock, RATE_MEMORY_SECONDS, DELAY_MEMORY_SECONDS)
        self._lead = EnrichmentLead(clock, LEAD_PERIOD_SECONDS, LEAD_MEMORY_SECONDS)
        self._preparing = 0
        self._enriching = 0

    def room(self) -> int:
        """Return the number of jobs that the engine has room for now, including jobs that should be in enrichment.

        While the engine's queue is empty, surplus jobs in enrichment do not count. Otherwise a ready job would wait for
        jobs that wait for the web.
        """
        load = self._load()
        wanted = self._wanted(load) - load.waiting - self._preparing
        lead = self._lead.jobs() - self._enriching
        return max(0, wanted + (lead if load.waiting else max(0, lead)))

    def _wanted(self, load: EngineLoad) -> int:
        """Return how many jobs should wait in the engine, or be on their way there.

        Fewer, and the engine runs dry before the next refill; more, and they wait in front of newer, more urgent jobs.
        """
        answers = self._refill.look()
        waiting = answers + min(MARGIN, load.running) if self._fixed is None else self._fixed
        return load.free + waiting

    def due_ms(self, record: Record) -> int | None:
        """Always None: every job is due at once."""
        return None

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Count one job as in preparation during the block, before enrichment and the engine."""
        self._preparing += 1
        try:
            yield
        finally:
            self._preparing -= 1

    @contextmanager
    def enriching(self) -> Iterator[None]:
        """Count one job as in enrichment during the block."""
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
    """The answers that the engine gives during a refill: from one look at it until the jobs of the next look arrive.

    Jobs are handed over at each look, and arrive before the look after it, so a refill takes at most two intervals
    between looks. An interval is a round of the stage: 5 ms, or 50 ms and more on a busy broker. Without a job waiting
    for it, each place whose request ends stays idle for that time. The event loop counts answers, and only the Kafka
    thread looks.
    """

    def __init__(self, clock: Clock, rate_memory_seconds: float, delay_memory_seconds: float) -> None:
        self._clock = clock
        self._rate_memory_seconds = rate_memory_seconds
        self._delay_memory_seconds = delay_memory_seconds
        self._answered = 0
        self._counted = 0
        self._rate = 0.0
        """Answers a second: an exponentially weighted mean."""
        self._looks = (clock.monotonic(), clock.monotonic())
        """The times of the last two looks."""
        self._delays: deque[tuple[float, float]] = deque()
        """Delays with their times, in seconds; each is longer than all later ones."""

    def answered(self) -> None:
        """Count one answer."""
        self._answered += 1

    def look(self) -> int:
        """Return the answers at the present rate in the longest delay of the last `delay_memory_seconds`."""
        now, answered = self._clock.monotonic(), self._answered
        before, last = self._looks
        if now > last:
            weight = 1 - math.exp(-(now - last) / self._rate_memory_seconds)
            self._rate += weight * ((answered - self._counted) / (now - last) - self._rate)
            self._counted, self._looks = answered, (last, now)
            self._note_delay(now, now - before)
        return math.ceil(self._rate * self._delays[0][1]) if self._delays else 0

    def _note_delay(self, now: float, seconds: float) -> None:
        while self._delays and self._delays[-1][1] <= seconds:
            self._delays.pop()
        self._delays.append((now, seconds))
        while now - self._delays[0][0] > self._delay_memory_seconds:
            self._delays.popleft()


class EnrichmentLead:
    """The number of jobs in enrichment that supplies the engine as fast as it answers.

    Little's law gives the number: answers a second times the seconds that a job spends in enrichment, 0 without
    sources. A job counts when the engine answers it, so that the engine's speed limits the lead. The event loop counts
    jobs, and the Kafka thread reads the lead.
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
