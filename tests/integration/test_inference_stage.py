"""Real workers on a real broker: deadlines, lanes, limits, traces, and the metrics afterwards."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.operations.topics import create_topics
from schemas.settings import KafkaSettings
from tests.fleet_here import FleetHere, running_here
from tests.messages import headers_of
from tests.product import Product, eventually

pytestmark = pytest.mark.broker

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
IN_THE_PAST = 1_700_000_000_000
"""Unix milliseconds."""


def job(name: str, prompt: str | None = "What is the capital of France?", **fields: Any) -> dict[str, Any]:
    said = {"job_id": name, "prompt": prompt, **fields}
    return {field: value for field, value in said.items() if value is not None}


def as_bytes(*jobs: dict[str, Any]) -> list[bytes]:
    return [json.dumps(one).encode() for one in jobs]


def test_a_job_is_answered_within_its_time_and_limits_or_says_why_not(fleet_here: FleetHere) -> None:
    fleet_here.callbacks.up()
    url = {"callback_url": fleet_here.callbacks.url}
    worker = fleet_here.worker("w1", "--engine", "echo", "--with-delivery")
    traced = as_bytes(job("traced", metadata={"for": "me"}, custom_id="mine", **url))
    fleet_here.put(traced, [("traceparent", TRACE.encode())])
    fleet_here.wait_for_callbacks(1, 60)  # the worker has its partitions now, so later jobs start at once
    fleet_here.put(as_bytes(job("late", ttl_seconds=60, **url)), timestamp_ms=IN_THE_PAST)
    fleet_here.put(as_bytes(job("overdue", **url)), [("deadline", str(IN_THE_PAST).encode())])
    nowhere = ["http://10.0.0.1/"]
    fleet_here.submit(
        [
            job("cut-off", "[[sleep 60]] and then", ttl_seconds=2, **url),
            job("too-long", '"' * 250_000, response_format={"type": "json_object"}, **url),
            job("stored"),
            job("chat", None, messages=[{"role": "user", "content": "Who wrote it?"}], **url),
            job("needs-sources", sources={"urls": nowhere, "required": True}, **url),
            job("without-sources", sources={"urls": nowhere}, **url),
        ]
    )
    fleet_here.wait_for_callbacks(8, 60)
    fleet_here.wait_until_nothing_is_left()

    expected = {
        **dict.fromkeys(("late", "overdue", "cut-off"), "expired"),
        **dict.fromkeys(("too-long", "needs-sources"), "failed"),
        **dict.fromkeys(("traced", "chat", "stored", "without-sources"), "succeeded"),
    }
    assert fleet_here.outcomes() == expected
    data = {name: one[0].event for name, one in fleet_here.callbacks.events.items()}
    assert {name: event["type"] for name, event in data.items()} == {
        name: f"inference.{outcome}" for name, outcome in expected.items() if name != "stored"
    }
    errors = {name: event["data"]["error"]["code"] for name, event in data.items() if "error" in event["data"]}
    assert errors == {
        **dict.fromkeys(("late", "overdue", "cut-off"), "expired"),
        "too-long": "result_too_large",
        "needs-sources": "no_sources",
    }
    assert data["without-sources"]["data"]["notes"] != []
    answer = data["traced"]["data"]
    assert (answer["metadata"], answer["custom_id"], answer["engine"]) == ({"for": "me"}, "mine", "echo")
    assert answer["text"] == "What is the capital of France?"
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12}
    carried = {name: one[0].headers.get("traceparent") for name, one in fleet_here.callbacks.events.items()}
    assert carried == {**dict.fromkeys(carried, None), "traced": TRACE}

    metrics = worker.metrics()
    counted = {name: metrics.get(f"postback_jobs_total{{{name}}}") for name in ("succeeded", "failed", "expired")}
    assert counted == {"succeeded": 4, "failed": 2, "expired": 3}
    assert metrics["postback_job_seconds_count{queued}"] == 9
    assert metrics["postback_job_seconds_count{enrich}"] >= 1
    assert metrics["postback_job_seconds_count{infer}"] == 6
    assert metrics["postback_job_seconds_sum{infer}"] > 0
    assert metrics["postback_job_seconds_count{settle}"] >= 1
    assert metrics["postback_job_seconds_count{deliver}"] == metrics["postback_callbacks_total{delivered}"] == 8
    assert metrics["postback_in_flight"] == 0
    assert metrics["postback_tokens_total{prompt}"] >= 6
    assert metrics["postback_tokens_total{completion}"] >= 6
    assert "postback_tokens_total{wasted}" in metrics
    backlog = {name: value for name, value in metrics.items() if name.startswith("postback_backlog_records")}
    topics = {name.partition(",")[2].rstrip("}") for name in backlog}
    assert topics >= {fleet_here.kafka.topics.requests(), fleet_here.kafka.topics.results}
    eventually(lambda: _backlog(worker.metrics()) == 0, 10, "the backlog does not return to 0")


def _backlog(metrics: dict[str, float]) -> float:
    return sum(value for name, value in metrics.items() if name.startswith("postback_backlog_records"))


# -- several engines -----------------------------------------------------------------------------------------------


@pytest.fixture
def lanes(fleet: KafkaSettings, tmp_path: Path, clean_processes: None) -> Iterator[FleetHere]:
    """A fleet with a lane for an engine called `gpu`."""
    create_topics(fleet, engines=["gpu"])
    with running_here(fleet, tmp_path) as started:
        yield started


def test_a_job_for_another_engine_goes_to_its_lane_with_its_identity_and_a_circle_ends(lanes: Product) -> None:
    lanes.callbacks.up()
    shared = {"POSTBACK_WORKER__MODELS": json.dumps({"big": "gpu", "lost": "gpu"})}
    gpu = {"POSTBACK_WORKER__LANE": "gpu", "POSTBACK_WORKER__MODELS": json.dumps({"small": None, "lost": None})}
    big = lanes.worker("w2", "--engine", "echo", "--model", "big", **gpu)
    # Until the next worker starts, this worker may own all partitions.
    eventually(lambda: big.ready()[0], 30, "the worker of the lane is not ready")
    small = lanes.worker("w1", "--engine", "echo", "--model", "small", **shared)
    lanes.deliver("d1")
    url = {"callback_url": lanes.callbacks.url}
    names = [f"{model}-{number}" for model in ("big", "small", "lost") for number in range(8)]
    lanes.submit(job(name, model_id=name.partition("-")[0], ttl_seconds=600, **url) for name in names)
    lanes.put(as_bytes(job("traced-big", model_id="big", **url)), [("traceparent", TRACE.encode()), ("x-own", b"kept")])
    strays = [job(f"stray-{number}", model_id="small", **url) for number in range(4)]
    lanes.submit(strays, lanes.kafka.topics.requests("gpu"))
    unnamed = [{"prompt": "Who am I?", "model_id": "big", **url} for _ in range(4)]
    lanes.submit(unnamed)
    lanes.wait_for_callbacks(len(names) + 1 + 4 + 4, 60)
    lanes.wait_until_nothing_is_left()

    kinds = [(re.split("[-_]", name)[0], outcome) for name, outcome in lanes.outcomes().items()]
    assert Counter(kinds) == {
        ("big", "succeeded"): 8,
        ("small", "succeeded"): 8,
        ("lost", "rejected"): 8,
        ("traced", "succeeded"): 1,
        ("stray", "succeeded"): 4,
        ("job", "succeeded"): 4,
    }
    assert big.metrics()["postback_jobs_total{succeeded}"] == 8 + 1 + 4
    assert small.metrics()["postback_jobs_total{succeeded}"] == 8 + 4
    forwarded = lanes.read(lanes.kafka.topics.requests("gpu"))
    first = [headers for headers in map(headers_of, forwarded) if headers.get("forwarded") == b"1"]
    assert len(first) == 8 + 8 + 1 + 4
    webhook_ids = {headers["job-id"].decode(): headers["webhook-id"].decode() for headers in first}
    events = lanes.callbacks.events
    assert {name: events[name][0].webhook_id for name in webhook_ids} == webhook_ids
    assert len({one[0].webhook_id for one in events.values()}) == len(events)
    [own] = [headers for headers in first if headers["job-id"] == b"traced-big"]
    assert (own["x-own"], own["traceparent"]) == (b"kept", TRACE.encode())
    assert events["traced-big"][0].headers["traceparent"] == TRACE
    details = {letter["reason-detail"] for letter in lanes.dead_letters()}
    assert details == {
        "model_id: the workers' model registries contradict each other: the job was forwarded in a circle"
    }


# -- before it serves ----------------------------------------------------------------------------------------------


def test_a_worker_that_waits_for_its_engine_has_not_started_and_stops_when_asked(fleet_here: FleetHere) -> None:
    nowhere = {"POSTBACK_ENGINE__OPENAI__BASE_URL": "http://127.0.0.1:9/v1"}
    worker = fleet_here.worker("w1", "--engine", "openai", "--model", "far-away", **nowhere)
    assert worker.ready() == (False, ["the process is starting"])
    assert not worker.alive()
    eventually(lambda: "engine-wait" in worker.said(), 30, "the engine is not waited for")
    assert worker.terminate() == 0


def test_a_worker_without_its_topics_ends_with_one_line_that_says_what_to_do(fleet_here: FleetHere) -> None:
    worker = fleet_here.worker("w1", "--engine", "echo", POSTBACK_WORKER__LANE="nowhere")
    assert worker.ended(60) == 1
    missing = fleet_here.kafka.topics.requests("nowhere")
    assert f"the topic {missing} does not exist; `postback topics create` makes it" == worker.lines()[-1]["message"]


def test_delivery_without_a_keyring_ends_with_one_line_that_says_what_to_do(fleet_here: FleetHere) -> None:
    delivery = fleet_here.deliver("d1", POSTBACK_KEYRING=str(fleet_here.folder / "none.json"))
    assert delivery.ended(60) == 1
    assert "none.json" in delivery.said()
    assert "Traceback" not in delivery.said()
