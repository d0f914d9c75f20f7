"""How many more jobs an engine has use for: enough that it never runs dry, and few enough that Kafka holds the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from telemetry.clock import Clock
from workers.engines.base import Engine
from workers.stage.record import Record

AHEAD_SECONDS = 0.25
"""A fast engine gets as many jobs ahead as it answers in this time."""
LEAD_MEMORY_SECONDS = 5.0


class EnginePace:
    """Implements `Backpressure` of the stage. The event loop updates the counts, and the Kafka thread reads them."""

    def __init__(self, engine: Engine, waiting_target: int, clock: Clock) -> None:
        self._engine = engine
        self._waiting_target = waiting_target
        self._rate = AnswerRate(clock, AHEAD_SECONDS)
        self._lead = EnrichmentLead(clock, AHEAD_SECONDS, LEAD_MEMORY_SECONDS)
        self._preparing = 0
        self._enriching = 0

    def room(self) -> int:
        """Jobs that fill the engine's waiting queue, and those that have to be in enrichment to keep it filled.

        A fast engine gets as many as it lately answered in `AHEAD_SECONDS`, where that is more. While its queue is
        empty, jobs in enrichment do not count: a job that is ready must not wait for jobs that wait for the web.
        """
        waiting = self._engine.load().waiting
        wanted = max(self._waiting_target, self._rate.in_a_period()) - waiting - self._preparing
        lead = self._lead.jobs() - self._enriching
        return max(0, wanted + (lead if waiting else max(0, lead)))

    def due_ms(self, record: Record) -> int | None:
        """None: every job is due at once."""
        return None

    def paces(self, topic: str) -> bool:
        """False: no lane holds its records back."""
        return False

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """A block during which one job is neither in enrichment nor in the engine yet."""
        self._preparing += 1
        try:
            yield
        finally:
            self._preparing -= 1

    @contextmanager
    def enriching(self) -> Iterator[None]:
        """A block during which one job is in enrichment."""
        self._enriching += 1
        try:
            yield
        finally:
            self._enriching -= 1

    def answered(self, enrich_seconds: float) -> None:
        """The engine is done with a job that spent this long in enrichment, 0 without sources."""
        self._rate.answered()
        self._lead.answered(enrich_seconds)


class AnswerRate:
    """How many jobs the engine lately answered in a period.

    The stage dispatches once a round, and a round takes as long as its transaction: 5 ms, or 50 ms on a busy broker. So
    a fixed number of jobs ahead would be a ceiling of that many a round, however fast the engine is. Counts on the
    event loop. The Kafka thread asks, and alone begins a new period.
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
        """Answers in a period of this length, by the last period that is over."""
        now = self._clock.monotonic()
        elapsed = now - self._since
        if elapsed >= self._period_seconds:
            answered = self._answered
            self._latest = (answered - self._counted) * self._period_seconds / elapsed
            self._counted, self._since = answered, now
        return int(self._latest)


class EnrichmentLead:
    """How many jobs must be in enrichment to come out of it as fast as the engine answers.

    By Little's law: answers a second times the seconds that each job spent in enrichment, 0 without sources. Counted at
    the answer, so that the lead never grows beyond what the engine can use. Counts on the event loop; the Kafka thread
    asks.
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
        """Count one answer to a job that spent this long in enrichment."""
        self._seconds += enrich_seconds

    def jobs(self) -> int:
        """The lead by the last `memory_seconds`: a mean in which older periods count exponentially less."""
        now = self._clock.monotonic()
        elapsed = now - self._since
        if elapsed >= self._period_seconds:
            seconds = self._seconds
            weight = 1 - math.exp(-elapsed / self._memory_seconds)
            self._mean += weight * ((seconds - self._counted) / elapsed - self._mean)
            self._counted, self._since = seconds, now
        return round(self._mean)
