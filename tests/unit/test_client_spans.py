"""The client library's spans, with and without an OpenTelemetry SDK that the application has set up."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from postback_client.spans import Submitted, submission
from telemetry.traces import parse_traceparent


def test_without_an_sdk_there_is_no_header() -> None:
    with submission("job_1") as submitted:
        assert submitted.headers == {}


def test_the_header_names_the_exported_span(monkeypatch: pytest.MonkeyPatch) -> None:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    accepted, refused = Submitted("job_1"), Submitted("job_2")
    accepted.end()
    refused.end(failed=True)
    with pytest.raises(ValueError, match="hush"), submission(None):
        raise ValueError("hush: the prompt")
    spans = exporter.get_finished_spans()
    assert [(span.name, span.status.status_code.name, dict(span.attributes or {})) for span in spans] == [
        ("submit", "UNSET", {"job_id": "job_1"}),
        ("submit", "ERROR", {"job_id": "job_2"}),
        ("submit", "ERROR", {}),
    ]
    context = parse_traceparent(accepted.headers["traceparent"])
    assert context is not None
    assert (int(context.trace_id, 16), int(context.span_id, 16)) == (
        spans[0].context.trace_id,
        spans[0].context.span_id,
    )
    assert "hush" not in spans[2].to_json()


def test_a_span_that_is_not_sampled_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: TracerProvider(sampler=ALWAYS_OFF))
    context = parse_traceparent(Submitted().headers["traceparent"])
    assert context is not None
    assert not context.sampled
