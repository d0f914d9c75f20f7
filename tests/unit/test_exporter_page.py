"""The exporter's figures and pages, from records in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Event
from typing import Any

from prometheus_client import generate_latest

from operators.exporter.exporter import Exporter
from producers.errors import BrokerUnreachable
from producers.scan import Stored, StoredPlace
from schemas.endpoint import EndpointState
from schemas.worker import announcement, write_announcement
from telemetry.hand_clock import SetClock
from telemetry.metrics import Metrics
from tests.unit.exporter_reading import (
    NOW,
    SETTINGS,
    TOPICS,
    InMemory,
    endpoint,
    job,
    letter,
    standing,
    worker,
)


def exporter(reader: InMemory, clock: SetClock, metrics: Metrics | None = None) -> Exporter:
    @contextmanager
    def connect() -> Iterator[InMemory]:
        yield reader

    return Exporter(TOPICS, connect, SETTINGS, metrics or Metrics(), clock)


def page(role: Exporter) -> tuple[int, dict[str, Any]]:
    said = role.backlog("")
    return said.status, json.loads(said.body)


def filled(jobs: Sequence[Stored]) -> InMemory:
    reader = InMemory(waiting={TOPICS.requests(): len(jobs), TOPICS.results: 7, TOPICS.tier(5): 2})
    reader.lanes.advance([standing("topic", 0, len(jobs))])
    [[partition]] = reader.lanes.by_pool()[None].values()
    for one in jobs:
        partition.add(one)
    reader.facts.add_letter(letter(0))
    reader.facts.add_endpoint(endpoint(EndpointState.DISABLED))
    reader.facts.add_worker(worker("w1", "echo"))
    return reader


def test_the_page_has_the_figures_of_the_last_reading() -> None:
    clock = SetClock(NOW / 1000)
    role = exporter(filled([job(0, at_ms=NOW - 30_000), *(job(n, ttl=100) for n in range(1, 200))]), clock)
    assert page(role) == (503, {"stale": True, "reasons": ["No reading of Kafka is complete yet."]})
    role.read(filled([job(0, at_ms=NOW - 30_000), *(job(n, ttl=100) for n in range(1, 200))]))

    status, said = page(role)
    lanes = said.pop("lanes")
    assert (status, said) == (
        200,
        {
            "jobs": 200,
            "callbacks": 9,
            "fresh_callbacks": 7,
            "oldest_job_seconds": 30.0,
            "tightest_deadline_seconds": 70.0,
            "wanted_replicas": 1,
            "dead_letters": 1,
            "disabled_endpoints": 1,
            "workers": 1,
            "models": {"echo": 1},
            "topics": {TOPICS.requests(): 200, TOPICS.results: 7, TOPICS.tier(5): 2},
            "read_at": NOW / 1000,
            "stale": False,
            "reasons": [],
        },
    )
    assert [(lane["lane"], lane["jobs"], lane["workers"]) for lane in lanes] == [(None, 200, 1)]


def test_each_class_of_a_lane_has_figures_of_its_own() -> None:
    metrics, reader, bulk = Metrics(), InMemory(), TOPICS.requests(bulk=True)
    reader.lanes.advance([standing("topic", 0, 1), replace(standing("bulk", 0, 2), topic=bulk)])
    reader.waiting = {TOPICS.requests(): 1, bulk: 2}
    lanes = reader.lanes.by_pool()[None]
    lanes[TOPICS.requests()][0].add(job(0, ttl=20, at_ms=NOW - 1_000))
    for number in range(2):
        lanes[bulk][0].add(job(number, ttl=9_000, at_ms=NOW - 3_600_000, topic=bulk))
    role = exporter(reader, SetClock(NOW / 1000), metrics)
    role.read(reader)

    [lane] = page(role)[1]["lanes"]
    fields = "name", "jobs", "oldest_job_seconds", "tightest_deadline_seconds"
    assert sorted(tuple(each[one] for one in fields) for each in lane["classes"]) == [
        ("bulk", 2, 3600.0, 5400.0),
        ("default", 1, 1.0, 19.0),
    ]
    assert (lane["jobs"], lane["oldest_job_seconds"], lane["tightest_deadline_seconds"]) == (3, 3600.0, 19.0)
    for name, age in (("default", 1.0), ("bulk", 3600.0), ("spare", None)):
        labels = {"lane": "", "class": name}
        assert metrics.registry.get_sample_value("postback_class_oldest_job_seconds", labels) == age


def test_jobs_of_slow_workers_want_more_workers_also_after_the_workers_have_ended() -> None:
    clock, metrics, reader = SetClock(NOW / 1000), Metrics(), InMemory(waiting={TOPICS.requests(): 6000})
    reader.lanes.advance([replace(standing("topic", 0, 6000 if each == 0 else 0), partition=each) for each in range(9)])
    first, *_ = reader.lanes.by_pool()[None][TOPICS.requests()]
    for number in range(6000):
        first.add(job(number, ttl=3600))
    role = exporter(reader, clock, metrics)
    role.read(reader)
    before = page(role)[1]["wanted_replicas"]

    value = write_announcement(announcement("w1", None, [], NOW, answer_seconds=1200.0))
    reader.facts.add_worker(Stored(TOPICS.workers, StoredPlace(0, 9), NOW, b"w1", value, []))
    role.read(reader)
    after = page(role)[1]
    reader.facts.add_worker(Stored(TOPICS.workers, StoredPlace(0, 10), NOW, b"w1", None, []))
    clock.now += 2 * SETTINGS.down_seconds
    role.read(reader)
    later = page(role)[1]

    # The 6,000 jobs are due in 3,600 s, and 600 s later in 3,000 s. An answer takes 1,200 s, so the jobs must begin
    # within 2,400 s, and later within 1,800 s.
    assert (before, after["wanted_replicas"]) == (2, 3)
    assert (later["workers"], later["wanted_replicas"]) == (0, 4)
    assert [each["lanes"][0]["answer_seconds"] for each in (after, later)] == [1200.0, 1200.0]
    assert metrics.registry.get_sample_value("postback_worker_answer_seconds", {"lane": ""}) == 1200.0


def test_a_failed_reading_makes_the_last_figures_stale_until_the_next_one() -> None:
    clock, metrics, reader = SetClock(NOW / 1000), Metrics(), filled([job(0)])
    role = exporter(reader, clock, metrics)
    role.read(reader)
    assert role.readiness().ready

    reader.error, reader.stop = BrokerUnreachable("kafka:9092"), Event()
    role.run(reader.stop)
    status, said = page(role)
    assert (status, said["stale"], said["jobs"]) == (503, True, 1)
    assert "no Kafka broker answers" in said["reasons"][0]
    shown = generate_latest(metrics.registry).decode()
    assert "postback_figures_stale 1.0" in shown
    assert 'postback_waiting_jobs{lane=""} 1.0' in shown

    reader.error = None
    role.read(reader)
    assert page(role)[0] == 200
    assert "postback_figures_stale 0.0" in generate_latest(metrics.registry).decode()


def test_before_the_first_reading_the_fleets_gauges_have_no_value_and_the_figures_are_stale() -> None:
    """A restarted exporter that showed 0 first would let alerts on growth fire at its first reading."""
    metrics, reader = Metrics(), filled([job(0)])
    reader.error = BrokerUnreachable("kafka:9092")
    role = exporter(reader, SetClock(NOW / 1000), metrics)
    names = {"disabled_endpoints", "open_dead_letters", "waiting_callbacks", "figures_timestamp_seconds"}

    def shown() -> dict[str, float]:
        found = {name: metrics.registry.get_sample_value(f"postback_{name}") for name in {*names, "figures_stale"}}
        return {name: value for name, value in found.items() if value is not None}

    assert shown() == {"figures_stale": 1}
    role.run(reader.stop)
    assert shown() == {"figures_stale": 1}

    reader.error = None
    role.read(reader)
    assert shown() == {
        "disabled_endpoints": 1,
        "open_dead_letters": 1,
        "waiting_callbacks": 9,
        "figures_timestamp_seconds": NOW / 1000,
        "figures_stale": 0,
    }


def test_an_error_that_was_not_expected_ends_no_exporter() -> None:
    reader = filled([])
    role = exporter(reader, SetClock(NOW / 1000))
    reader.error = ValueError("from a library")
    role.run(reader.stop)

    assert role.readiness().reasons == ("The reading raised ValueError; see the log.",)


def test_figures_without_a_new_reading_become_stale() -> None:
    clock, reader = SetClock(NOW / 1000), filled([job(0)])
    role = exporter(reader, clock)
    role.read(reader)
    clock.now += SETTINGS.stale_seconds + 1

    assert page(role)[0] == 503


def test_series_without_a_figure_vanish() -> None:
    clock, metrics, reader = SetClock(NOW / 1000), Metrics(), filled([job(0)])
    role = exporter(reader, clock, metrics)
    role.read(reader)
    assert 'postback_model_workers{model="echo"}' in generate_latest(metrics.registry).decode()
    assert 'postback_tightest_deadline_seconds{lane=""} 100.0' in generate_latest(metrics.registry).decode()
    assert 'postback_worker_clock_skew_seconds{side="ahead"} 0.0' in generate_latest(metrics.registry).decode()

    empty = InMemory()
    role.read(empty)
    shown = generate_latest(metrics.registry).decode()
    assert 'model="echo"' not in shown
    assert "postback_tightest_deadline_seconds{" not in shown
    assert 'postback_waiting_jobs{lane=""} 0.0' in shown
