"""traceparent: W3C Trace Context level 1, section 3.2 and its examples."""

from __future__ import annotations

import pytest

from telemetry.traces import TraceContext, context_of, parse_traceparent, set_up, span, start_trace, with_context

EXAMPLE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_traceparent_survives_the_round_trip() -> None:
    context = parse_traceparent(EXAMPLE)
    assert context == TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)
    assert context.traceparent == EXAMPLE


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


def test_a_child_stays_in_its_trace_and_is_a_span_of_its_own() -> None:
    parent = start_trace()
    child = parent.child()
    assert child.trace_id == parent.trace_id
    assert child.span_id != parent.span_id
    assert parse_traceparent(child.traceparent) == child


def test_headers_carry_one_context_the_last() -> None:
    first, last = start_trace(), start_trace()
    headers = [
        ("tenant", b"t"),
        ("traceparent", first.traceparent.encode()),
        ("traceparent", last.traceparent.encode()),
    ]
    assert context_of(headers) == last
    replaced = with_context(headers, first)
    assert replaced == [("tenant", b"t"), ("traceparent", first.traceparent.encode())]
    assert with_context(headers, None) == headers


def test_headers_without_a_context_have_none() -> None:
    assert context_of(None) is None
    assert context_of([("traceparent", b"\xff\xfe")]) is None


def test_a_span_that_nobody_collects_passes_its_parent_on() -> None:
    parent = start_trace()
    with span("infer", parent) as context:
        assert context == parent
    with span("infer") as context:
        assert context is None


def test_nothing_is_exported_where_no_endpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    set_up("worker")()
    with span("infer") as context:
        assert context is None
