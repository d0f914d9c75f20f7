"""traceparent: W3C Trace Context level 1, section 3.2 and its examples."""

from __future__ import annotations

import pytest

from schemas.codec import Origin, read_job
from telemetry.traces import TraceContext, parse_traceparent, set_up, span, start_trace

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


def test_a_child_stays_in_its_trace_and_is_a_span_of_its_own() -> None:
    parent = start_trace()
    child = parent.child()
    assert child.trace_id == parent.trace_id
    assert child.span_id != parent.span_id
    assert parse_traceparent(child.traceparent) == child


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
