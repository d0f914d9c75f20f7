"""Spans of submissions, if the application has set OpenTelemetry up.

The spans of the gateway and of workers become children of a submission's span. Without the package `opentelemetry-api`,
or without an SDK that the application has set up, there are no spans, and requests and records have no `traceparent`.
Source: W3C Trace Context, level 1, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

try:
    from opentelemetry import trace
except ImportError:  # the package is optional
    _HAS_API = False
else:
    _HAS_API = True

TRACEPARENT = "traceparent"


class Submitted:
    """The span of one submission, from construction to `end`. `traceparent` is None without OpenTelemetry."""

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


@contextmanager
def submission(job_id: str | None) -> Iterator[Submitted]:
    """Record a `with` block as a submission's span.

    An exception marks the span as an error; the exception's text is left out.
    """
    submitted, failed = Submitted(job_id), True
    try:
        yield submitted
        failed = False
    finally:
        submitted.end(failed=failed)
