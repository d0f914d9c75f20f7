"""The counts read from a vLLM server's page of metrics, and from any other bytes."""

from __future__ import annotations

import sys
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from tests.drawn import drawn
from workers.engines.openai_http.figures import load_in
from workers.engines.openai_http.limits import ServerLoad

PAGE = b"""\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 11298.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="deferred"} 0.0
"""
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"


def test_the_counts_of_a_vllm_server_are_read_once_each() -> None:
    assert load_in(PAGE) == ServerLoad(running=3, waiting=2)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>404</html>",
        PAGE.replace(b"num_requests_running", b"num_requests_walking"),
        PAGE.replace(b"} 3.0", b"} NaN"),
        PAGE.replace(b"} 3.0", b"} +Inf"),
        PAGE.replace(b"} 3.0", b"} -1"),
        PAGE.replace(b"} 3.0", b"} 1e300"),
        PAGE.replace(b"} 3.0", b"} three"),
        PAGE.replace(b"} 3.0", b"} " + b"9" * 900),
        PAGE.replace(b"tiny", b"t" * 5000),
        PAGE + b'vllm:num_requests_running{engine="1"} 1.0\n' * 2000,
        PAGE + b"vllm:num_requests_running{",
    ],
    ids=range(12),
)
def test_a_page_without_both_counts_tells_nothing(page: bytes) -> None:
    assert load_in(page) is None


@settings(max_examples=drawn(60))
@given(st.lists(st.tuples(st.text(max_size=40), st.integers(0, 2000), st.integers(0, 2000)), min_size=1, max_size=9))
def test_the_counts_of_all_ranks_and_models_are_added(counts: list[tuple[str, int, int]]) -> None:
    registry = CollectorRegistry()
    labels = ["model_name", "engine"]
    running, waiting = (Gauge(name, "A count.", labels, registry=registry) for name in (RUNNING, WAITING))
    Histogram("vllm:e2e_request_latency_seconds", "Seconds.", labels, registry=registry).labels("tiny", "0").observe(1)
    for rank, (model, runs, waits) in enumerate(counts):
        running.labels(model, str(rank)).set(runs)
        waiting.labels(model, str(rank)).set(waits)
    page = generate_latest(registry)
    assert load_in(page) == ServerLoad(sum(runs for _, runs, _ in counts), sum(waits for _, _, waits in counts))


HOSTILE = [b'\\"', b"\\\\", b"}", b"} 1", b'a="",', b"{", b" ", b"\t", b"9", b"1 1"]


@pytest.mark.parametrize("label", HOSTILE)
def test_a_line_takes_few_steps_whatever_its_labels_hold(label: bytes) -> None:
    lines = [name.encode() + b'{a="' + label * (900 // len(label)) + b'"} 1' for name in (RUNNING, WAITING)]
    count = 0

    def counted(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        load = load_in(b"\n".join(lines * 500))
    finally:
        sys.setprofile(before)
    assert load == ServerLoad(500, 500)
    assert count < 10_000


NOISE = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.text(alphabet='vllm:num_{}="\\,#. 0123456789eE+-NaInf\t\r\x00', max_size=80).map(str.encode),
)


@settings(max_examples=drawn(300))
@given(st.lists(st.tuples(st.sampled_from([RUNNING, WAITING, ""]), NOISE), max_size=6))
def test_noise_is_no_page_and_raises_nothing(lines: list[tuple[str, bytes]]) -> None:
    load = load_in(b"\n".join(name.encode() + rest for name, rest in lines))
    assert load is None or (load.running >= 0 and load.waiting >= 0)


@settings(max_examples=drawn(200))
@given(st.data())
def test_a_damaged_page_raises_nothing(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(PAGE)))
    end = data.draw(st.integers(start, min(len(PAGE), start + 40)))
    load = load_in(PAGE[:start] + data.draw(NOISE) + PAGE[end:])
    assert load is None or (load.running >= 0 and load.waiting >= 0)
