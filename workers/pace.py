"""How fast jobs are answered: what an engine is kept supplied by."""

from __future__ import annotations

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
