"""The times of jobs: spans of their traces, the metric `postback_job_seconds`, and the 99th percentile of the answers.

The worker announces the percentile, with which the exporter plans the number of workers.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import TracebackType

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
    """Makes a `TimedPhase` for each step of a job, and observes the time that the job spent in Kafka."""

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._seconds = {name: metrics.job_seconds.labels(name) for name in ("queued", "enrich", "infer")}
        self.is_traced = collecting()
        """True if a collector takes spans. Without one no span is made, since spans cost time."""

    def queued(self, received: ReceivedJob) -> tuple[ReceivedJob, float]:
        """Observe the phase `queued` as `waited` does. Return the job, and the phase in ms.

        With a collector, a job without a trace gets a new trace, which begins with this phase.
        """
        queued_ms = self.waited(received)
        if self.is_traced:
            now, parent = self._clock.time(), parse_traceparent(received.traceparent)
            context = past_span("queued", (now - queued_ms / 1000, now), parent, {"job_id": received.job_id})
            if parent is None and context is not None:
                received = replace(received, traceparent=context.traceparent)
        return received, queued_ms

    def waited(self, received: ReceivedJob) -> float:
        """Observe the phase `queued`, from the record's timestamp until now. Return the phase in ms."""
        queued_ms = max(0.0, self._clock.time() * 1000 - received.received_ms)
        self.observe("queued", queued_ms / 1000, received)
        return queued_ms

    def timed(self, name: str, received: ReceivedJob) -> TimedPhase:
        """Return a context manager that times a part of one phase, `enrich` or `infer`."""
        return TimedPhase(self, name, received)

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


class TimedPhase:
    """Times one phase of one job, with a span of its trace. `seconds` is set when the block ends."""

    def __init__(self, phases: Phases, name: str, received: ReceivedJob) -> None:
        self._phases = phases
        self._span = phases.span(name, received)
        self._began = 0.0
        self.seconds = 0.0

    @property
    def ms(self) -> float:
        """The length of the phase in milliseconds."""
        return self.seconds * 1000

    def __enter__(self) -> TimedPhase:
        self._began = self._phases.now()
        self._span.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._span.__exit__(kind, error, trace)
        self.seconds = self._phases.now() - self._began
