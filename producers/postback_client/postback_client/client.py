"""The interface that both transports have, and the spans of submissions, if the application has set OpenTelemetry up.

The spans of the gateway and of workers become children of a submission's span. Without the package `opentelemetry-api`,
or without an SDK that the application has set up, there are no spans, and requests and records have no `traceparent`.
Source: W3C Trace Context, level 1, section 3.2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from postback_client.errors import StillWaiting
from postback_client.job import Lane
from postback_client.wire import Job, Result

try:
    from opentelemetry import trace
except ImportError:  # the package is optional
    _HAS_API = False
else:
    _HAS_API = True

TRACEPARENT = "traceparent"


class PostbackClient(ABC):
    """Submits jobs, and receives their results. Only one thread at a time may use a client.

    All methods raise PostbackError; `postback_client.errors` lists its subclasses.
    """

    @abstractmethod
    def submit(self, jobs: Iterable[Job | Mapping[str, Any]], *, lane: Lane = "default") -> list[str]:
        """Submit jobs, wait until all are accepted durably, and return their ids in the same order.

        Even if this call has to send a request again, each job is accepted once. A job without a `job_id` gets one.
        Raises SubmitFailed.
        """

    @abstractmethod
    def stream(self, job_ids: Iterable[str], timeout: float | None = None) -> Iterator[Result]:
        """Yield the result of each job, as soon as the job has one. Raises StillWaiting after `timeout` seconds."""

    def wait(self, job_ids: Iterable[str], timeout: float | None = None) -> list[Result]:
        """Wait for the results of all jobs, and return them in the order of the ids.

        Raises StillWaiting with the results so far.
        """
        wanted, found = list(job_ids), dict[str, Result]()
        try:
            for result in self.stream(wanted, timeout):
                found[result.job_id] = result
        except StillWaiting as waiting:
            raise StillWaiting(waiting.job_ids, list(found.values())) from None
        return [found[job_id] for job_id in wanted]

    @abstractmethod
    def cancel(self, job_id: str) -> None:
        """Ask for a job's cancellation. A job that already has a result keeps that result.

        Over HTTPS, raises Conflict if the job already has its result; over Kafka, the client cannot know this.
        """

    @abstractmethod
    def close(self) -> None:
        """Disconnect."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Submitted:
    """The span of one submission, from construction to `end` or to the end of a `with` block.

    `traceparent` is None without OpenTelemetry. An error's text is left out of the span.
    """

    def __init__(self, job_id: str | None = None) -> None:
        self.traceparent: str | None = None
        """The header's value for the gateway or the workers."""
        if not _HAS_API:
            return
        about = {"job_id": job_id} if job_id is not None else None
        tracer = trace.get_tracer("postback-client")
        self._span = tracer.start_span("submit", kind=trace.SpanKind.PRODUCER, attributes=about)
        context = self._span.get_span_context()
        if context.is_valid:
            self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"

    @property
    def headers(self) -> Mapping[str, str]:
        """The header fields of a request."""
        return {TRACEPARENT: self.traceparent} if self.traceparent is not None else {}

    def end(self, *, failed: bool = False) -> None:
        """End the span. `failed` marks the span as an error."""
        if self.traceparent is None:
            return
        if failed:
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(failed=kind is not None)
