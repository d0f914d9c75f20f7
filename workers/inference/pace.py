"""How fast jobs are answered, and how many have to be on their way for that: what an engine is kept supplied by."""

from __future__ import annotations

import math

from telemetry.clock import Clock


class AnswerRate:
    """Counts answers on the event loop, and is asked on the Kafka thread, which is the one that moves the period.

    Jobs are handed over once in a round of the Kafka thread, and a round takes as long as its transaction: 5 ms, or 50
    where the broker is busy. A fixed number of jobs on hand would be a ceiling of so many jobs a round, whatever the
    engine can do.
    """

    def __init__(self, clock: Clock, period_seconds: float) -> None:
        self._clock = clock
        self._period_seconds = period_seconds
        self._answered = 0
        self._counted = 0
        self._since = clock.monotonic()
        self._latest = 0.0

    def answered(self) -> None:
        """One more."""
        self._answered += 1

    def in_a_period(self) -> int:
        """How many were answered in a period of this length, as the last one that is over tells."""
        now = self._clock.monotonic()
        elapsed = now - self._since
        if elapsed >= self._period_seconds:
            answered = self._answered
            self._latest = (answered - self._counted) * self._period_seconds / elapsed
            self._counted, self._since = answered, now
        return int(self._latest)


class EnrichmentLead:
    """How many jobs have to be in enrichment so that they come out of it as fast as the engine answers.

    By Little's law that is the answers a second times the seconds that each spent in enrichment, none for a job without
    sources. Counted at the answer, so that it never grows beyond what the engine can use. Counts on the event loop, and
    is asked on the Kafka thread.
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
        """One more, and what it spent in enrichment."""
        self._seconds += enrich_seconds

    def jobs(self) -> int:
        """As the last `memory_seconds` tell, the latest most: a mean that forgets exponentially."""
        now = self._clock.monotonic()
        elapsed = now - self._since
        if elapsed >= self._period_seconds:
            seconds = self._seconds
            weight = 1 - math.exp(-elapsed / self._memory_seconds)
            self._mean += weight * ((seconds - self._counted) / elapsed - self._mean)
            self._counted, self._since = seconds, now
        return round(self._mean)
