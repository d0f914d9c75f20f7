"""Traces: W3C traceparent through Kafka headers, and OpenTelemetry spans for a collector.

A job keeps its trace from the producer to its callback. The header `traceparent` travels with every record and names
the span that put the job on Kafka. Only a process that exports that span writes the header, so the collector gets every
parent. If a job's record has no such header, the worker begins the job's trace.

Spans use OpenTelemetry's API, which costs almost nothing until `set_up` finds a collector's address in the environment.
The SDK's own variables choose the sample: `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`. By default, a span is
exported if its parent is, and a trace that begins here is exported.

Sources: W3C Trace Context, level 1, section 3.2; OpenTelemetry's specification of environment variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from threading import Thread

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from schemas.topics import TRACEPARENT_FORMAT

FLUSH_SECONDS = 3.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


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


class Kind(Enum):
    """The role of a span (OpenTelemetry's specification of the tracing API, "SpanKind")."""

    INTERNAL = trace.SpanKind.INTERNAL
    SERVER = trace.SpanKind.SERVER
    """Answers a request."""
    CLIENT = trace.SpanKind.CLIENT
    """Sends a request, and waits for the answer."""
    PRODUCER = trace.SpanKind.PRODUCER
    """Puts a record on Kafka; other processes' spans follow later."""


def is_traceparent(value: str) -> bool:
    """True if a context can be read from the value, which is then printable ASCII."""
    return TRACEPARENT_FORMAT.fullmatch(value) is not None


def parse_traceparent(value: str | None) -> TraceContext | None:
    """Return the trace context in a header's value; None if the value is absent or invalid.

    A version above 00 is read as 00 with further fields, as section 3.2.4 requires; version ff is invalid.
    """
    match = TRACEPARENT_FORMAT.fullmatch(value or "")
    if match is None:
        return None
    trace_id, span_id, flags = match.group(1, 2, 3)
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1))


@contextmanager
def span(
    name: str,
    parent: TraceContext | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    *,
    kind: Kind = Kind.INTERNAL,
) -> Iterator[TraceContext | None]:
    """Run a block as a span, and yield the context to pass on in headers. An exception's class becomes `error.type`.

    Without a `parent`, the current span is the parent, or a new trace begins. Without a collector, the yielded context
    is that of `parent`, so the trace still reaches the consumer. The rule for log lines also applies to attributes: no
    prompts, no secrets, and only the origin of a URL.
    """
    # Record no exceptions, because the SDK would export an exception's text, which may repeat a prompt.
    with _tracer().start_as_current_span(
        name,
        context=_under(parent),
        kind=kind.value,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield _from_otel(current.get_span_context())
        except BaseException as error:
            annotate({"error.type": type(error).__qualname__}, failed=True)
            raise


class OpenSpan:
    """A span that other code ends, such as the code that receives the broker's answer to a record."""

    def __init__(self, current: trace.Span) -> None:
        self._span = current
        self.context = _from_otel(current.get_span_context())
        """The context to pass on in headers."""

    def end(self, *, failed: bool = False) -> None:
        """End the span. `failed` marks this span as an error."""
        if failed:
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()


def begin_span(
    name: str,
    parent: TraceContext | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    *,
    kind: Kind = Kind.INTERNAL,
) -> OpenSpan:
    """Begin a span, under the rules of `span`. The span does not become the current one."""
    return OpenSpan(_tracer().start_span(name, context=_under(parent), kind=kind.value, attributes=attributes))


def past_span(
    name: str,
    seconds: tuple[float, float],
    parent: TraceContext | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    *,
    kind: Kind = Kind.INTERNAL,
) -> TraceContext | None:
    """Export a span that has ended, under the rules of `span`. `seconds` are the span's first and last Unix time."""
    began, ended = (round(each * 1e9) for each in seconds)
    past = _tracer().start_span(
        name, context=_under(parent), kind=kind.value, attributes=attributes, start_time=min(began, ended)
    )
    past.end(end_time=ended)
    return _from_otel(past.get_span_context())


def annotate(attributes: Mapping[str, AttributeValue], *, failed: bool = False) -> None:
    """Add attributes to the current span, under the rule of `span`. `failed` marks the span as an error."""
    current = trace.get_current_span()
    current.set_attributes(attributes)
    if failed:
        current.set_status(trace.StatusCode.ERROR)


def rename(name: str) -> None:
    """Give the current span another name, if the right one was not known at its beginning."""
    trace.get_current_span().update_name(name)


def collecting() -> bool:
    """True if a collector gets the spans. Callers ask this to avoid the cost of spans that no collector gets."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def current_trace() -> TraceContext | None:
    """The context of the current span; None without a collector."""
    return _from_otel(trace.get_current_span().get_span_context())


def exemplar(context: TraceContext | None) -> dict[str, str] | None:
    """Return the labels that link a histogram's observation to a trace; None if the collector does not get the trace.

    Source: OpenMetrics 1.0, "Exemplars".
    """
    return {"trace_id": context.trace_id} if context is not None and context.sampled and collecting() else None


@contextmanager
def exporting(service: str) -> Iterator[None]:
    """Export the spans of a block if the environment names an OTLP endpoint and the SDK is installed.

    The block's end sends the remaining spans within FLUSH_SECONDS, so that a hanging collector does not use up the
    process's time to stop. Only a process that exports spans imports the SDK.
    """
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        yield
        return
    provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        ending = Thread(target=provider.shutdown, name="flush-spans", daemon=True)
        ending.start()
        ending.join(FLUSH_SECONDS)


def _tracer() -> trace.Tracer:
    return trace.get_tracer("postback")


def _under(parent: TraceContext | None) -> contexts.Context | None:
    """Return the context in which a span gets this parent; None stands for the current context."""
    return trace.set_span_in_context(trace.NonRecordingSpan(_to_otel(parent))) if parent is not None else None


def _to_otel(context: TraceContext) -> trace.SpanContext:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if context.sampled else trace.TraceFlags.DEFAULT)
    return trace.SpanContext(int(context.trace_id, 16), int(context.span_id, 16), is_remote=True, trace_flags=flags)


def _from_otel(context: trace.SpanContext) -> TraceContext | None:
    if not context.is_valid:
        return None
    return TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags.sampled)
