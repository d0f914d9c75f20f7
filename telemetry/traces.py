"""Traces: W3C traceparent through Kafka headers, and OpenTelemetry spans for a collector.

A job keeps its trace from the producer to its callback: the header `traceparent` travels with every record. Spans
use OpenTelemetry's API, which costs almost nothing until `set_up` finds a collector's address in the environment.

Source: W3C Trace Context, level 1, section 3.2.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread

from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

TRACEPARENT = "traceparent"
FLUSH_SECONDS = 3.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FORMAT = re.compile(
    r"(?!ff)(?!00-.{52}-)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[\x20-\x7e]{0,256})?"
)
"""The pattern of `schemas.codec` again. Neither module may import the other, so a test compares the two patterns."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A place in a trace: the trace's id, and the id of the parent span."""

    trace_id: str
    """32 lower-case hexadecimal digits, not all 0."""
    span_id: str
    """16 lower-case hexadecimal digits, not all 0."""
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        """The value of the header `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{self.sampled:02x}"

    def child(self) -> TraceContext:
        """Return a new span of the same trace."""
        return TraceContext(self.trace_id, secrets.token_hex(8), self.sampled)


def start_trace() -> TraceContext:
    """Start a new trace."""
    return TraceContext(secrets.token_hex(16), secrets.token_hex(8))


def is_traceparent(value: str) -> bool:
    """True if a context can be read from the value, which is then printable ASCII."""
    return _FORMAT.fullmatch(value) is not None


def parse_traceparent(value: str | None) -> TraceContext | None:
    """Read a header's value. Return None for an absent or invalid value, after which a new trace may begin.

    A version above 00 is read as 00 with further fields, as section 3.2.4 requires; version ff is invalid.
    """
    match = _FORMAT.fullmatch(value or "")
    if match is None:
        return None
    trace_id, span_id, flags = match.group(1, 2, 3)
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1))


@contextmanager
def span(
    name: str, parent: TraceContext | None = None, attributes: Mapping[str, AttributeValue] | None = None
) -> Iterator[TraceContext | None]:
    """Run a block as a span, and yield the context to pass on in headers.

    Without a collector, the yielded context is the parent, so the trace still reaches the consumer. The rule for log
    lines also applies to attributes: no prompts, no secrets, and only the origin of a URL.
    """
    context = trace.set_span_in_context(trace.NonRecordingSpan(_to_otel(parent))) if parent is not None else None
    tracer = trace.get_tracer("postback")
    with tracer.start_as_current_span(name, context=context, attributes=attributes, record_exception=False) as current:
        yield _from_otel(current.get_span_context())


def annotate(attributes: Mapping[str, AttributeValue], *, failed: bool = False) -> None:
    """Add attributes to the current span, under the rule of `span`. `failed` marks the span as an error."""
    current = trace.get_current_span()
    current.set_attributes(attributes)
    if failed:
        current.set_status(trace.StatusCode.ERROR)


def collecting() -> bool:
    """True if a collector gets the spans. Callers ask to avoid the cost of spans that no collector gets."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def current_trace() -> TraceContext | None:
    """The context of the current span; None without a collector."""
    return _from_otel(trace.get_current_span().get_span_context())


def set_up(service: str) -> Callable[[], None]:
    """Export spans if the environment names an OTLP endpoint and the SDK is installed. Call the result before exit.

    The result sends the remaining spans within FLUSH_SECONDS, so that a hanging collector does not use up the process's
    time to stop. Only a process that exports spans imports the SDK.
    """
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return _nothing
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        return _nothing
    provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

    def flush() -> None:
        ending = Thread(target=provider.shutdown, name="flush-spans", daemon=True)
        ending.start()
        ending.join(FLUSH_SECONDS)

    return flush


def _nothing() -> None:
    return None


def _to_otel(context: TraceContext) -> trace.SpanContext:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if context.sampled else trace.TraceFlags.DEFAULT)
    return trace.SpanContext(int(context.trace_id, 16), int(context.span_id, 16), is_remote=True, trace_flags=flags)


def _from_otel(context: trace.SpanContext) -> TraceContext | None:
    if not context.is_valid:
        return None
    return TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags.sampled)
