"""The times of jobs: spans of their traces, the metric `postback_job_seconds`, and the 99th percentile of the answers.

The worker announces the percentile, with which the exporter plans the number of workers.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from schemas.codec import ReceivedJob
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from telemetry.traces import collecting, exemplar, parse_traceparent, past_span, span

KEPT = 1000
"""The number of answers that are remembered: enough that ten of them exceed the 99th percentile."""


class AnswerTimes:
    """The seconds that each of the last answers took: the job's enrichment and generation."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=KEPT)

    def add(self, seconds: float) -> None:
        """Add the time of an answered job."""
        self._seconds.append(seconds)

    def p99(self) -> float | None:
        """Return the 99th percentile in seconds, or the longest of fewer than 100 times. None if there is no answer."""
        in_order = sorted(self._seconds)
        return in_order[math.ceil(0.99 * len(in_order)) - 1] if in_order else None


_NO_SPAN = nullcontext()


class Phases:
    """Observes the times of jobs' phases, and makes the spans of their traces."""

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._seconds = {name: metrics.job_seconds.labels(name) for name in ("queued", "enrich", "infer")}
        self.is_traced = collecting()
        """True if a collector takes spans. Without one no span is made, since spans cost time."""

    def queued(self, received: ReceivedJob) -> tuple[ReceivedJob, float]:
        """Observe the phase `queued`, from the record's timestamp until now. Return the job, and the phase in ms.

        With a collector, a job without a trace gets a new trace, which begins with this phase.
        """
        now = self._clock.time()
        queued_ms = max(0.0, now * 1000 - received.received_ms)
        if self.is_traced:
            parent = parse_traceparent(received.traceparent)
            context = past_span("queued", (now - queued_ms / 1000, now), parent, {"job_id": received.job_id})
            if parent is None and context is not None:
                received = replace(received, traceparent=context.traceparent)
        self.observe("queued", queued_ms / 1000, received)
        return received, queued_ms

    def now(self) -> float:
        """Return the time of the monotonic clock in seconds."""
        return self._clock.monotonic()

    def observe(self, name: str, seconds: float, received: ReceivedJob) -> None:
        """Add one job to the phase's histogram."""
        self._seconds[name].observe(seconds, self._exemplar(received) if self.is_traced else None)

    def _exemplar(self, received: ReceivedJob) -> dict[str, str] | None:
        return exemplar(parse_traceparent(received.traceparent))

    def span(self, name: str, received: ReceivedJob) -> AbstractContextManager[object]:
        """Return a span of the job's trace for one phase, or an empty context manager without a collector."""
        if not self.is_traced:
            return _NO_SPAN
        return span(name, parse_traceparent(received.traceparent), {"job_id": received.job_id})
