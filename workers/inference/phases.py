"""The phases of a job: durations for the metric `postback_job_seconds`, and spans of the job's trace."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from schemas.codec import ReceivedJob
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from telemetry.traces import collecting, parse_traceparent, span

_NO_SPAN = nullcontext()


class Phases:
    """Makes a `TimedPhase` for each step of a job, and observes the time that the job spent in Kafka."""

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._seconds = {name: metrics.job_seconds.labels(name) for name in ("queued", "enrich", "infer")}
        self._traced = collecting()  # a span for each job costs too much if no collector reads it

    def queued_ms(self, received: ReceivedJob) -> float:
        """Observe the phase `queued`, and return its milliseconds: from the record's timestamp until now."""
        queued_ms = max(0.0, self._clock.time() * 1000 - received.received_ms)
        self._seconds["queued"].observe(queued_ms / 1000)
        return queued_ms

    def timed(self, name: str, received: ReceivedJob) -> TimedPhase:
        """Return a context manager that times one phase, `enrich` or `infer`."""
        return TimedPhase(self, name, received)

    def now(self) -> float:
        """Monotonic seconds."""
        return self._clock.monotonic()

    def observe(self, name: str, seconds: float) -> None:
        """Add one job to the phase's histogram."""
        self._seconds[name].observe(seconds)

    def span(self, name: str, received: ReceivedJob) -> AbstractContextManager[object]:
        """Return a span of the job's trace for one phase, or an empty context manager without a collector."""
        if not self._traced:
            return _NO_SPAN
        return span(name, parse_traceparent(received.traceparent), {"job_id": received.job_id})


class TimedPhase:
    """Times one phase of one job. `seconds` is set when the block ends; the metric leaves out a block that raises."""

    def __init__(self, phases: Phases, name: str, received: ReceivedJob) -> None:
        self._phases = phases
        self._name = name
        self._span = phases.span(name, received)
        self._began = 0.0
        self.seconds = 0.0

    @property
    def ms(self) -> float:
        """The phase's milliseconds."""
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
        if kind is None:
            self._phases.observe(self._name, self.seconds)
