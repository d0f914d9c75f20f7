"""Records of any content, as the exporter takes them, and its figures and pages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from console.ledgers import done_offsets
from operators.backlog import GroupProgress
from operators.exporter.exporter import Exporter
from operators.exporter.facts import MOST_WORKERS, Facts
from operators.exporter.lanes import Lanes
from operators.exporter.open_jobs import OpenJobs
from operators.exporter.pool import ReadingTime, WorkerPool
from operators.exporter.settings import ExporterSettings
from producers.errors import BrokerUnreachable
from producers.scan import Stored, StoredPlace
from schemas import topics as names
from schemas.endpoint import EndpointRecord, EndpointState, key_bytes, write_endpoint
from schemas.groups import INFERENCE_GROUP
from schemas.topics import LETTERS_KEPT_MS, Topics
from schemas.worker import announcement, worker_key, write_announcement
from telemetry.hand_clock import SetClock
from telemetry.metrics import Metrics
from tests.unit.test_any_stored_record import HEADERS, KEYS, TIMES, VALUES

TOPICS = Topics("t.")
NOW = 1_800_000_000_000
SETTINGS = ExporterSettings(start_seconds=0, margin_seconds=0, time_share=1)
JOBS = st.builds(
    lambda prompt, ttl: json.dumps({"prompt": prompt, "ttl_seconds": ttl}).encode(),
    st.text(min_size=1, max_size=9),
    st.floats(1, 1e6) | st.text(max_size=3) | st.just(-1),
)
ENDPOINT = ("acme", "https://hooks.example/")


def job(
    offset: int, *, ttl: float = 100, at_ms: int = NOW, topic: str = TOPICS.requests(), partition: int = 0
) -> Stored:
    value = json.dumps({"prompt": "Why?", "ttl_seconds": ttl}).encode()
    return Stored(topic, StoredPlace(partition, offset), at_ms, None, value, [])


def endpoint(state: EndpointState) -> Stored:
    said = EndpointRecord(tenant=ENDPOINT[0], url=ENDPOINT[1], state=state, at=1)
    return Stored(TOPICS.endpoints, StoredPlace(0, 0), NOW, key_bytes(ENDPOINT), write_endpoint(said), [])


def worker(replica: str, *models: str, lane: str | None = None, at_ms: int = NOW) -> Stored:
    value = write_announcement(announcement(replica, lane, models, at_ms))
    return Stored(TOPICS.workers, StoredPlace(0, 0), at_ms, worker_key(replica), value, [])


def letter(offset: int, at_ms: int = NOW) -> Stored:
    return Stored(TOPICS.dead_letters, StoredPlace(0, offset), at_ms, None, b"", [])


def mark(offset: int, at_ms: int = NOW) -> Stored:
    return Stored(TOPICS.redriven, StoredPlace(0, 0), at_ms, str(StoredPlace(0, offset)).encode(), b"", [])


@dataclass
class InMemory:
    """A reader whose records a test adds by hand."""

    lanes: Lanes = field(default_factory=lambda: Lanes(TOPICS, done_offsets, 1000, 1000))
    facts: Facts = field(default_factory=lambda: Facts(TOPICS))
    waiting: dict[str, int] = field(default_factory=dict)
    error: Exception | None = None
    stop: Event = field(default_factory=Event)

    def read(self, now_ms: int) -> dict[str, int]:
        self.stop.set()
        if self.error is not None:
            raise self.error
        self.facts.forget(now_ms)
        return dict(self.waiting)


@given(st.lists(st.tuples(TIMES, VALUES | JOBS, HEADERS), max_size=5), st.integers(0, 31))
def test_a_lanes_record_of_any_content_is_a_waiting_job(found: list[tuple[int, Any, Any]], done: int) -> None:
    partition, end = OpenJobs("topic", 0), len(found) + 2
    done = done << 1 & (1 << end) - 1
    partition.advance(0, done, end)
    for offset, (at_ms, value, headers) in enumerate(found):
        partition.add(Stored(TOPICS.requests(), StoredPlace(0, offset), at_ms, None, value, headers))

    expected = end - done.bit_count()
    assert partition.known + partition.unread == expected
    figures = WorkerPool(None, SETTINGS).figures([[partition]], 1, ReadingTime(NOW, 0.0))
    assert json.loads(json.dumps(figures.jobs)) == expected
    assert 0 <= figures.oldest_job_seconds <= names.LANES_KEPT_MS / 1000


@given(
    st.lists(
        st.tuples(st.sampled_from(["letter", "mark", "endpoint", "worker"]), TIMES, KEYS, VALUES, HEADERS), max_size=9
    )
)
def test_a_fact_of_any_content_is_taken(found: list[tuple[str, int, Any, Any, Any]]) -> None:
    facts = Facts(TOPICS)
    takers = {
        "letter": facts.add_letter,
        "mark": facts.add_mark,
        "endpoint": facts.add_endpoint,
        "worker": facts.add_worker,
    }
    for kind, at_ms, key, value, headers in found:
        takers[kind](Stored("any", StoredPlace(3, 7), at_ms, key, value, headers))
    facts.forget(NOW)

    assert facts.dead_letters <= 1
    json.dumps([facts.models(), facts.disabled_endpoints, *facts.workers().values()])


@given(st.data())
def test_the_known_jobs_are_those_that_are_read_and_not_done(data: st.DataObject) -> None:
    """A random walk of commits and reads, compared with a plain set of offsets."""
    partition, read, end, base, done = OpenJobs("topic", 0), 0, 0, 0, set[int]()
    for _ in range(data.draw(st.integers(1, 12))):
        end += data.draw(st.integers(0, 20))
        done |= set(data.draw(st.lists(st.integers(base, max(base, end - 1)), max_size=20))) if end > base else set()
        base = next((offset for offset in range(base, end) if offset not in done), end)
        partition.advance(base, sum(1 << offset - base for offset in done if offset >= base), end)
        read = max(read, base)
        stop = min(end, read + data.draw(st.integers(0, 15)))
        for offset in range(read, stop):
            partition.add(job(offset, at_ms=offset))
        read = stop
        assert [arrived for arrived, _ in partition.times()] == [o for o in range(base, read) if o not in done]
        assert partition.unread == sum(offset not in done for offset in range(read, end))


def test_a_read_that_broke_off_adds_no_job_twice() -> None:
    partition = OpenJobs("topic", 0)
    partition.advance(0, 0, 3)
    for offset in (0, 1, 0, 1, 2):
        partition.add(job(offset))

    assert (partition.known, partition.unread) == (3, 0)


def standing(topic_id: str, base: int, end: int) -> GroupProgress:
    return GroupProgress(INFERENCE_GROUP, TOPICS.requests(), 0, base, end, "", topic_id)


@pytest.mark.parametrize("later", [standing("another", 1, 9), standing("topic", 0, 9)], ids=["new topic", "undone"])
def test_a_new_topic_and_a_commit_that_was_undone_are_read_again(later: GroupProgress) -> None:
    lanes = Lanes(TOPICS, done_offsets, 1000, 1000)
    lanes.advance([standing("topic", 1, 9)])
    [[partition]] = lanes.by_pool()[None].values()
    partition.add(job(1))
    lanes.advance([later])

    [[partition]] = lanes.by_pool()[None].values()
    assert (partition.known, partition.unread, partition.position) == (0, 9 - later.base, later.base)


def test_the_lanes_of_an_engine_are_a_pool_of_their_own() -> None:
    lanes = Lanes(TOPICS, done_offsets, 1000, 1000)
    topics = [TOPICS.requests(engine, bulk=bulk) for engine in (None, "big") for bulk in (False, True)]
    lanes.advance([GroupProgress(INFERENCE_GROUP, topic, 0, 0, 1, "", "id") for topic in topics])

    assert {pool: sorted(found) for pool, found in lanes.by_pool().items()} == {None: topics[:2], "big": topics[2:]}


def test_a_letter_counts_until_it_is_put_back_or_too_old() -> None:
    facts = Facts(TOPICS)
    for offset in range(4):
        facts.add_letter(letter(offset, NOW if offset else NOW - LETTERS_KEPT_MS - 1))
    facts.add_mark(mark(1))
    facts.add_mark(mark(2, NOW - 3_600_000))  # of an earlier topic of this name
    facts.forget(NOW)

    assert facts.dead_letters == 2


def test_an_endpoint_counts_from_its_disabling_until_a_person_enables_it() -> None:
    facts, counts = Facts(TOPICS), []
    for state in ("failing", "disabled", "disabled", "failing", "enabled"):
        facts.add_endpoint(endpoint(EndpointState(state)))
        counts.append(facts.disabled_endpoints)

    assert counts == [0, 1, 1, 1, 0]


def test_a_worker_counts_until_it_withdraws_or_is_silent() -> None:
    facts = Facts(TOPICS)
    for one in (worker("w1", "a", "b"), worker("w2", "a", lane="big"), worker("w3", "c", at_ms=NOW - 181_000)):
        facts.add_worker(one)
    facts.forget(NOW)
    assert (facts.workers(), facts.models()) == ({None: 1, "big": 1}, {"a": 2, "b": 1})

    facts.add_worker(Stored(TOPICS.workers, StoredPlace(0, 9), NOW, b"w1", None, []))
    assert (facts.workers(), facts.models()) == ({"big": 1}, {"a": 1})


def test_the_times_of_workers_answers_are_those_of_their_last_announcements_by_lane() -> None:
    facts = Facts(TOPICS)
    told = [("w1", None, 5.0), ("w2", None, 8.0), ("w3", "big", 90.0), ("w4", None, None), ("w1", None, 6.0)]
    for replica, lane, seconds in told:
        value = write_announcement(announcement(replica, lane, [], NOW, answer_seconds=seconds))
        facts.add_worker(Stored(TOPICS.workers, StoredPlace(0, 0), NOW, worker_key(replica), value, []))

    assert facts.answers() == {None: [6.0, 8.0], "big": [90.0]}


def test_the_clocks_of_workers_are_compared_with_the_brokers() -> None:
    facts = Facts(TOPICS)
    assert facts.clock_skew() == {"ahead": 0.0, "behind": 0.0}
    for replica, ahead_ms in (("w1", 4_000), ("w2", -9_000), ("w3", 100)):
        value = write_announcement(announcement(replica, None, [], NOW + ahead_ms))
        facts.add_worker(Stored(TOPICS.workers, StoredPlace(0, 0), NOW, worker_key(replica), value, []))

    assert facts.clock_skew() == {"ahead": 4.0, "behind": 9.0}


def test_an_announcement_with_an_impossible_time_is_left_out() -> None:
    facts, said = Facts(TOPICS), worker("w1", "a").value or b""
    for time in (b"9" * 400, b"-1", b"1000000000000000"):
        value = said.replace(str(NOW).encode(), time)
        facts.add_worker(Stored(TOPICS.workers, StoredPlace(0, 0), NOW, worker_key("w1"), value, []))

    assert (facts.workers().total(), facts.clock_skew()["ahead"]) == (0, 0.0)


def test_announcements_without_end_take_a_bounded_memory() -> None:
    facts = Facts(TOPICS)
    for number in range(MOST_WORKERS + 9):
        facts.add_worker(worker(f"w{number}", "a"))

    assert facts.workers().total() == MOST_WORKERS


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

    assert (before, after["wanted_replicas"]) == (2, 3)  # 6,000 jobs in 3,600 and in 2,400 seconds
    assert (later["workers"], later["wanted_replicas"]) == (0, 4)  # in 1,800 of the 3,000 seconds that are left
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
