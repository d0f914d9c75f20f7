"""The number of jobs to dispatch: enough to keep the engine busy, and few enough that Kafka holds the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from telemetry.clock import Clock
from workers.engines.base import Engine
from workers.stage.record import Record

AHEAD_SECONDS = 0.25
"""Seconds of work that a fast engine gets ahead."""
LEAD_MEMORY_SECONDS = 5.0


class EnginePace:
    """Implements the stage's `Backpressure`. The event loop updates the counts, and the Kafka thread reads them."""

    paced = False

    def __init__(self, engine: Engine, waiting_target: int, clock: Clock) -> None:
        self._engine = engine
        self._waiting_target = waiting_target
        self._rate = AnswerRate(clock, AHEAD_SECONDS)
        self._lead = EnrichmentLead(clock, AHEAD_SECONDS, LEAD_MEMORY_SECONDS)
        self._preparing = 0
        self._enriching = 0

    def room(self) -> int:
        """Return the number of jobs that the engine has room for now, including jobs that should be in enrichment.

        The engine's queue is filled up to `waiting_target`, or to the number of jobs lately answered in `AHEAD_SECONDS`
        if that is larger. While the queue is empty, surplus jobs in enrichment do not count. Otherwise a ready job
        would wait for jobs that wait for the web.
        """
        waiting = self._engine.load().waiting
        wanted = max(self._waiting_target, self._rate.in_a_period()) - waiting - self._preparing
        lead = self._lead.jobs() - self._enriching
        return max(0, wanted + (lead if waiting else max(0, lead)))

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
        self._rate.answered()
        self._lead.answered(enrich_seconds)


class AnswerRate:
    """The number of jobs that the engine answers in a period.

    The stage dispatches once a round, and a round takes as long as its transaction: 5 ms, or 50 ms on a busy broker. A
    fixed number of jobs ahead would be a limit for each round, however fast the engine is. The event loop counts
    answers. The Kafka thread reads the rate, and only this thread begins a new period.
    """

    def __init__(self, clock: Clock, period_seconds: float) -> None:
        self._clock = clock
        self._period_seconds = period_seconds
        self._answered = 0
        self._counted = 0
        self._since = clock.monotonic()
        self._latest = 0.0

    def answered(self) -> None:
        """Count one answer."""
        self._answered += 1

    def in_a_period(self) -> int:
        """Return the number of answers in one period, measured over the last complete period."""
        now = self._clock.monotonic()
        elapsed = now - self._since
        if elapsed >= self._period_seconds:
            answered = self._answered
            self._latest = (answered - self._counted) * self._period_seconds / elapsed
            self._counted, self._since = answered, now
        return int(self._latest)


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
