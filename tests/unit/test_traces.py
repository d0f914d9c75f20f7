"""`traceparent` as section 3.2 of W3C Trace Context level 1 defines it, with the examples there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from schemas.codec import Origin, read_job
from telemetry.traces import TraceContext, exemplar, exporting, parse_traceparent, past_span, span

EXAMPLE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_traceparent_survives_the_round_trip() -> None:
    context = parse_traceparent(EXAMPLE)
    assert context == TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)
    assert context.traceparent == EXAMPLE


@pytest.mark.parametrize(
    "value",
    [
        EXAMPLE,
        EXAMPLE[:-2] + "fe",
        "cc" + EXAMPLE[2:],
        "cc" + EXAMPLE[2:] + "-",
        "cc" + EXAMPLE[2:] + "-what-the-future-brings",
        "cc" + EXAMPLE[2:] + "-" + "x" * 257,
        "cc" + EXAMPLE[2:] + "-\x1b[2J",
        "cc" + EXAMPLE[2:] + "-\xe9",
        "cc" + EXAMPLE[2:] + "more",
        "00" + EXAMPLE[2:] + "-",
        EXAMPLE.upper(),
        EXAMPLE + "\n",
        "ff" + EXAMPLE[2:],
        "00-" + "0" * 32 + EXAMPLE[35:],
        EXAMPLE[:36] + "0" * 16 + "-01",
    ],
)
def test_the_header_of_a_job_is_valid_where_a_context_can_be_read_from_it(value: str) -> None:
    headers = [("traceparent", value.encode("latin-1"))]
    carried = read_job(b'{"prompt": "q"}', headers, Origin("t", 0, 0), 0).traceparent
    assert (carried == value) is (parse_traceparent(value) is not None)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        EXAMPLE.upper(),
        EXAMPLE + "\n",
        EXAMPLE + "-more",
        EXAMPLE[:-1],
        "ff" + EXAMPLE[2:],
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
    ],
)
def test_an_invalid_traceparent_is_no_context(value: str | None) -> None:
    assert parse_traceparent(value) is None


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    context = parse_traceparent("cc" + EXAMPLE[2:] + "-what-the-future-brings")
    assert context is not None
    assert context.traceparent == EXAMPLE


def test_only_the_sampled_flag_is_kept() -> None:
    context = parse_traceparent(EXAMPLE[:-2] + "fe")
    assert context is not None
    assert not context.sampled


def test_a_span_without_a_collector_passes_its_parent_on() -> None:
    parent = parse_traceparent(EXAMPLE)
    with span("infer", parent) as context:
        assert context == parent
    with span("infer") as context:
        assert context is None
    assert past_span("queued", (1.0, 2.0), parent) == parent
    assert exemplar(parent) is None


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans that end in this test.

    A process can set OpenTelemetry's provider only once, so this fixture patches the provider's getter.
    """
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


def test_the_text_of_an_exception_is_not_exported(collected: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="hush"), span("infer"):
        raise ValueError("hush: the prompt")
    [ended] = collected.get_finished_spans()
    assert "hush" not in ended.to_json()
    assert (ended.status.is_ok, dict(ended.attributes or {})) == (False, {"error.type": "ValueError"})


def test_a_span_of_the_past_has_its_times_and_ends_no_earlier_than_it_begins(collected: InMemorySpanExporter) -> None:
    past_span("queued", (1.5, 2.0), parse_traceparent(EXAMPLE))
    past_span("queued", (3.0, 2.0))
    assert [(each.start_time, each.end_time) for each in collected.get_finished_spans()] == [
        (1_500_000_000, 2_000_000_000),
        (2_000_000_000, 2_000_000_000),
    ]


def test_an_observation_links_to_its_trace_if_the_collector_gets_the_trace(collected: InMemorySpanExporter) -> None:
    context = parse_traceparent(EXAMPLE)
    assert exemplar(context) == {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
    assert exemplar(parse_traceparent(EXAMPLE[:-2] + "00")) is None
    assert exemplar(None) is None


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True))
def test_any_header_value_is_a_context_or_none(value: str) -> None:
    context = parse_traceparent(value)
    assert context is None or parse_traceparent(context.traceparent) == context


def test_nothing_is_exported_where_no_endpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    with exporting("worker"), span("infer") as context:
        assert context is None
