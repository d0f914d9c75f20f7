"""The exporter: figures and pages from records of any content, and the number of workers to ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from cli.operations.backlog import GroupProgress
from cli.operations.exporter.exporter import STALE_SECONDS, Exporter, WorkerPool
from cli.operations.exporter.reading import MOST_WORKERS, Facts, Lanes, OpenJobs, callback_deadline
from cli.operations.exporter.replicas import (
    LEAST_HORIZON_SECONDS,
    ExporterSettings,
    Hysteresis,
    Throughput,
    WaitingJobs,
    answer_seconds,
    wanted_replicas,
)
from producers.errors import BrokerUnreachable
from producers.scan import Stored, StoredPlace
from schemas import topics as names
from schemas.endpoint import EndpointRecord, EndpointState, key_bytes, write_endpoint
from schemas.groups import DELIVERY_GROUP, INFERENCE_GROUP
from schemas.topics import LETTERS_KEPT_MS, Topics
from schemas.worker import LONGEST_ANSWER_SECONDS, announcement, worker_key, write_announcement
from telemetry.hand_clock import SetClock
from telemetry.metrics import Metrics
from tests.unit.test_put_back import HEADERS, KEYS, TIMES, VALUES
from workers.stage.progress import done_offsets

TOPICS = Topics("t.")
NOW = 1_800_000_000_000
SETTINGS = ExporterSettings(start_seconds=0, margin_seconds=0, time_share=1)
ENDPOINT = ("acme", "https://hooks.example/")


def job(
    offset: int, *, ttl: float = 100, at_ms: int = NOW, topic: str = TOPICS.requests(), partition: int = 0
) -> Stored:
    value = json.dumps({"prompt": "Why?", "ttl_seconds": ttl}).encode()
    return Stored(topic, StoredPlace(partition, offset), at_ms, None, value, [])


def endpoint(state: EndpointState) -> Stored:
    said = EndpointRecord(tenant=ENDPOINT[0], url=ENDPOINT[1], state=state, at=1)
    return Stored(TOPICS.endpoints, StoredPlace(0, 0), NOW, key_bytes(ENDPOINT), write_endpoint(said), [])


def worker(
    replica: str, *models: str, lane: str | None = None, at_ms: int = NOW, answer_seconds: float | None = None
) -> Stored:
    value = write_announcement(announcement(replica, lane, models, at_ms, answer_seconds=answer_seconds))
    return Stored(TOPICS.workers, StoredPlace(0, 0), NOW, worker_key(replica), value, [])


def withdrawn(replica: str) -> Stored:
    return Stored(TOPICS.workers, StoredPlace(0, 9), NOW, worker_key(replica), None, [])


def letter(offset: int, at_ms: int = NOW) -> Stored:
    return Stored(TOPICS.dead_letters, StoredPlace(0, offset), at_ms, None, b"", [])


def mark(offset: int, at_ms: int = NOW) -> Stored:
    return Stored(TOPICS.redriven, StoredPlace(0, 0), at_ms, str(StoredPlace(0, offset)).encode(), b"", [])


@dataclass
class InMemory:
    """A reader whose records a test adds by hand."""

    lanes: Lanes = field(default_factory=lambda: Lanes(TOPICS, done_offsets))
    callbacks: Lanes = field(default_factory=lambda: Lanes(TOPICS, done_offsets, callback_deadline))
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


def standing(topic_id: str, base: int, end: int) -> GroupProgress:
    return GroupProgress(INFERENCE_GROUP, TOPICS.requests(), 0, base, end, "", topic_id)


# -- figures and pages -------------------------------------------------------------------------------------------------


def filled(jobs: Sequence[Stored]) -> InMemory:
    reader = InMemory(waiting={TOPICS.requests(): len(jobs), TOPICS.results: 7, TOPICS.tier(5): 2})
    reader.lanes.advance([standing("topic", 0, len(jobs))])
    [[partition]] = reader.lanes.by_pool()[None].values()
    for one in jobs:
        partition.add(one)
    reader.callbacks.advance(
        [
            replace(standing(topic, 0, count), topic=topic, group=DELIVERY_GROUP)
            for topic, count in ((TOPICS.results, 7), (TOPICS.tier(5), 2))
        ]
    )
    reader.facts.add_letter(letter(0))
    reader.facts.add_endpoint(endpoint(EndpointState.DISABLED))
    reader.facts.add_worker(worker("w1", "echo"))
    return reader


@dataclass
class Role:
    """An exporter with its clock and metrics."""

    reader: InMemory
    clock: SetClock = field(default_factory=lambda: SetClock(NOW / 1000))
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        @contextmanager
        def connect() -> Iterator[InMemory]:
            yield self.reader

        self.exporter = Exporter(TOPICS, connect, SETTINGS, self.metrics, self.clock)

    def read(self) -> dict[str, Any]:
        """Read once, and return the page."""
        self.exporter.read(self.reader)
        return self.page()[1]

    def fail(self, error: Exception) -> None:
        """Run until a reading has failed with this error."""
        self.reader.error, self.reader.stop = error, Event()
        self.exporter.run(self.reader.stop)
        self.reader.error = None

    def page(self) -> tuple[int, dict[str, Any]]:
        said = self.exporter.backlog("")
        return said.status, json.loads(said.body)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"postback_{name}", labels)

    @property
    def shown(self) -> str:
        return generate_latest(self.metrics.registry).decode()


def test_the_page_has_the_figures_of_the_last_reading_until_they_are_stale() -> None:
    role = Role(filled([job(0, at_ms=NOW - 30_000), *(job(n, ttl=100) for n in range(1, 200))]))
    assert role.page() == (503, {"stale": True, "reasons": ["No reading of Kafka is complete yet."]})

    said = role.read()
    lanes = said.pop("lanes")
    assert said == {
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
    }
    assert [(lane["lane"], lane["jobs"], lane["workers"]) for lane in lanes] == [(None, 200, 1)]
    assert role.page()[0] == 200
    role.clock.now += STALE_SECONDS + 1
    assert role.page()[0] == 503


def test_each_class_of_a_lane_has_figures_of_its_own() -> None:
    reader, bulk = InMemory(), TOPICS.requests(bulk=True)
    reader.lanes.advance([standing("topic", 0, 1), replace(standing("bulk", 0, 2), topic=bulk)])
    reader.waiting = {TOPICS.requests(): 1, bulk: 2}
    lanes = reader.lanes.by_pool()[None]
    lanes[TOPICS.requests()][0].add(job(0, ttl=20, at_ms=NOW - 1_000))
    for number in range(2):
        lanes[bulk][0].add(job(number, ttl=9_000, at_ms=NOW - 3_600_000, topic=bulk))
    role = Role(reader)

    [lane] = role.read()["lanes"]
    fields = "name", "jobs", "oldest_job_seconds", "tightest_deadline_seconds"
    assert sorted(tuple(each[one] for one in fields) for each in lane["classes"]) == [
        ("bulk", 2, 3600.0, 5400.0),
        ("default", 1, 1.0, 19.0),
    ]
    assert (lane["jobs"], lane["oldest_job_seconds"], lane["tightest_deadline_seconds"]) == (3, 3600.0, 19.0)
    for name, age in (("default", 1.0), ("bulk", 3600.0), ("spare", None)):
        assert role.value("class_oldest_job_seconds", **{"lane": "", "class": name}) == age


def test_jobs_of_slow_workers_want_more_workers_also_after_the_workers_have_ended() -> None:
    reader = InMemory(waiting={TOPICS.requests(): 6000})
    reader.lanes.advance([replace(standing("topic", 0, 6000 if each == 0 else 0), partition=each) for each in range(9)])
    first, *_ = reader.lanes.by_pool()[None][TOPICS.requests()]
    for number in range(6000):
        first.add(job(number, ttl=3600))
    role = Role(reader)
    before = role.read()["wanted_replicas"]

    reader.facts.add_worker(worker("w1", answer_seconds=1200.0))
    after = role.read()
    reader.facts.add_worker(withdrawn("w1"))
    role.clock.now += 2 * SETTINGS.down_seconds
    later = role.read()

    # The 6,000 jobs are due in 3,600 s, and 600 s later in 3,000 s. An answer takes 1,200 s, so the jobs must begin
    # within 2,400 s, and later within 1,800 s.
    assert (before, after["wanted_replicas"]) == (2, 3)
    assert (later["workers"], later["wanted_replicas"]) == (0, 4)
    assert [each["lanes"][0]["answer_seconds"] for each in (after, later)] == [1200.0, 1200.0]
    assert role.value("worker_answer_seconds", lane="") == 1200.0


def test_a_failed_reading_makes_the_last_figures_stale_until_the_next_one() -> None:
    role = Role(filled([job(0)]))
    role.read()
    assert role.exporter.readiness().ready

    role.fail(BrokerUnreachable("kafka:9092"))
    status, said = role.page()
    assert (status, said["stale"], said["jobs"]) == (503, True, 1)
    assert "no Kafka broker answers" in said["reasons"][0]
    assert "postback_figures_stale 1.0" in role.shown
    assert 'postback_waiting_jobs{lane=""} 1.0' in role.shown

    role.fail(ValueError("from a library"))
    assert role.exporter.readiness().reasons == ("The reading raised ValueError; see the log.",)
    role.read()
    assert role.page()[0] == 200
    assert "postback_figures_stale 0.0" in role.shown


def test_before_the_first_reading_the_fleets_gauges_have_no_value_and_the_figures_are_stale() -> None:
    """A restarted exporter that showed 0 first would let alerts on growth fire at its first reading."""
    role = Role(filled([job(0)]))
    wanted = {"disabled_endpoints": 1, "open_dead_letters": 1, "waiting_callbacks": 9, "figures_stale": 0}
    wanted["figures_timestamp_seconds"] = NOW // 1000

    def shown() -> dict[str, float]:
        return {name: value for name in wanted if (value := role.value(name)) is not None}

    assert shown() == {"figures_stale": 1}
    role.fail(BrokerUnreachable("kafka:9092"))
    assert shown() == {"figures_stale": 1}
    role.read()
    assert shown() == wanted


def test_series_without_a_figure_vanish() -> None:
    role = Role(filled([job(0)]))
    role.read()
    assert 'postback_model_workers{model="echo"}' in role.shown
    assert 'postback_tightest_deadline_seconds{lane=""} 100.0' in role.shown

    role.reader = InMemory()
    role.read()
    assert 'model="echo"' not in role.shown
    assert "postback_tightest_deadline_seconds{" not in role.shown
    assert 'postback_waiting_jobs{lane=""} 0.0' in role.shown


# -- records of any content --------------------------------------------------------------------------------------------


JOBS = st.builds(
    lambda prompt, ttl: json.dumps({"prompt": prompt, "ttl_seconds": ttl}).encode(),
    st.text(min_size=1, max_size=9),
    st.floats(1, 1e6) | st.text(max_size=3) | st.just(-1),
)


@given(st.lists(st.tuples(TIMES, VALUES | JOBS, HEADERS), max_size=5), st.integers(0, 31))
def test_a_lanes_record_of_any_content_is_a_waiting_job(found: list[tuple[int, Any, Any]], done: int) -> None:
    partition, end = OpenJobs("topic", 0), len(found) + 2
    done = done << 1 & (1 << end) - 1
    partition.advance(0, done, end)
    for offset, (at_ms, value, headers) in enumerate(found):
        partition.add(Stored(TOPICS.requests(), StoredPlace(0, offset), at_ms, None, value, headers))

    expected = end - done.bit_count()
    assert partition.known + partition.unread == expected
    figures = WorkerPool(None, SETTINGS).figures({"default": [partition]}, 1, NOW, 0.0)
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


def test_a_new_topic_and_a_commit_that_was_undone_are_read_again() -> None:
    for later in (standing("another", 1, 9), standing("topic", 0, 9)):
        lanes = Lanes(TOPICS, done_offsets)
        lanes.advance([standing("topic", 1, 9)])
        [[partition]] = lanes.by_pool()[None].values()
        partition.add(job(1))
        lanes.advance([later])

        [[partition]] = lanes.by_pool()[None].values()
        assert (partition.known, partition.unread, partition.position) == (0, 9 - later.base, later.base)


def test_the_lanes_of_an_engine_are_a_pool_of_their_own() -> None:
    lanes = Lanes(TOPICS, done_offsets)
    topics = [TOPICS.requests(engine, bulk=bulk) for engine in (None, "big") for bulk in (False, True)]
    lanes.advance([GroupProgress(INFERENCE_GROUP, topic, 0, 0, 1, "", "id") for topic in topics])

    assert {pool: sorted(found) for pool, found in lanes.by_pool().items()} == {None: topics[:2], "big": topics[2:]}


def test_a_letter_counts_until_it_is_put_back_or_too_old_and_an_endpoint_until_a_person_enables_it() -> None:
    facts, counts = Facts(TOPICS), []
    for offset in range(4):
        facts.add_letter(letter(offset, NOW if offset else NOW - LETTERS_KEPT_MS - 1))
    facts.add_mark(mark(1))
    facts.add_mark(mark(2, NOW - 3_600_000))  # this mark belongs to an earlier topic of the same name
    facts.forget(NOW)
    for state in ("failing", "disabled", "disabled", "failing", "enabled"):
        facts.add_endpoint(endpoint(EndpointState(state)))
        counts.append(facts.disabled_endpoints)

    assert (facts.dead_letters, counts) == (2, [0, 1, 1, 1, 0])


def announced(*workers: Stored) -> Facts:
    facts = Facts(TOPICS)
    for one in workers:
        facts.add_worker(one)
    return facts


def test_a_worker_counts_until_it_withdraws_or_is_silent() -> None:
    silent = replace(worker("w3", "c", at_ms=NOW - 181_000), at_ms=NOW - 181_000)
    facts = announced(worker("w1", "a", "b"), worker("w2", "a", lane="big"), silent)
    facts.forget(NOW)
    assert (facts.workers(), facts.models()) == ({None: 1, "big": 1}, {"a": 2, "b": 1})

    facts.add_worker(withdrawn("w1"))
    assert (facts.workers(), facts.models()) == ({"big": 1}, {"a": 1})


def test_workers_tell_the_times_of_their_answers_by_lane() -> None:
    told = [("w1", None, 5.0), ("w2", None, 8.0), ("w3", "big", 90.0), ("w4", None, None), ("w1", None, 6.0)]
    facts = announced(*(worker(name, lane=lane, answer_seconds=seconds) for name, lane, seconds in told))
    assert facts.answers() == {None: [6.0, 8.0], "big": [90.0]}


def test_an_announcement_with_an_impossible_time_is_left_out_and_any_number_takes_a_bounded_memory() -> None:
    said = worker("w1", "a")
    times = (b"9" * 400, b"-1", b"1000000000000000")
    facts = announced(*(replace(said, value=(said.value or b"").replace(str(NOW).encode(), time)) for time in times))
    assert facts.workers().total() == 0
    many = announced(*(worker(f"w{number}", "a") for number in range(MOST_WORKERS + 9)))
    assert many.workers().total() == MOST_WORKERS


# -- the number of workers ---------------------------------------------------------------------------------------------


PLAN = ExporterSettings(max_replicas=1000, start_seconds=100, margin_seconds=50, time_share=0.5)
SECONDS = st.floats(-1e15, 1e15)
NEAR = st.floats(-100, 3000)
ANSWERS = st.floats(0, LONGEST_ANSWER_SECONDS)
NEAR_ANSWERS = st.floats(0, 3000) | ANSWERS
LANES = st.lists(st.builds(WaitingJobs, st.lists(SECONDS, max_size=20), st.integers(0, 10**9)), max_size=3)


def due_in(seconds: float, jobs: int) -> WaitingJobs:
    return WaitingJobs([seconds] * jobs)


@pytest.mark.parametrize(
    ("lanes", "wanted"),
    [
        ([], 0),
        ([WaitingJobs([])], 0),
        ([due_in(1e6, 1)], 1),
        ([due_in(4e15, 1)], 1),  # a record that is no valid job has no deadline
        ([due_in(1150, 500)], 1),  # 1,000 s are left after the start and the margin, and the jobs fill half of them
        ([due_in(1150, 501)], 2),
        ([due_in(1150, 500), due_in(1150, 1000)], 3),  # the jobs of a pool's two lanes are added up
        ([WaitingJobs([1e6] * 900 + [1150.0] * 100)], 2),  # the urgent jobs have to wait for all jobs before them
        ([WaitingJobs([1150.0] * 100 + [1e6] * 900)], 1),  # jobs behind an urgent job are not urgent
        ([WaitingJobs([1150.0] * 100, unread=900)], 2),  # unread jobs count as due with the last known job
        ([WaitingJobs([], unread=1)], 1),
        ([due_in(-5, 300)], 300 // LEAST_HORIZON_SECONDS),
    ],
)
def test_enough_workers_are_wanted_for_the_tightest_deadline(lanes: list[WaitingJobs], wanted: int) -> None:
    assert wanted_replicas(lanes, 1.0, PLAN) == wanted


def test_a_measured_time_of_the_answers_replaces_a_shorter_margin_up_to_half_of_the_time_left() -> None:
    # The fixed margin counts for 50 s. With 300 s, 700 s are left after the start, and the jobs fill half of them; of
    # the 1,000 s after the start, half is kept for the waiting jobs.
    wanted = {0.0: 11, 50.0: 11, 300.0: 15, 500.0: 20, 501.0: 20, 1e5: 20}
    speeds = {0.5: 20, 1.0: 10, 10.0: 1, 100.0: 1}
    assert {speed: wanted_replicas([due_in(1150, 5000)], speed, PLAN) for speed in speeds} == speeds
    lanes = [due_in(1100, 5000)]
    assert {each: wanted_replicas(lanes, 1.0, PLAN, each) for each in wanted} == wanted


@given(LANES, st.floats(1e-6, 1e6), st.integers(0, 9), st.integers(0, 9), ANSWERS)
def test_any_jobs_give_a_number_of_workers_within_the_bounds(
    lanes: list[WaitingJobs], speed: float, least: int, more: int, answers: float
) -> None:
    bounds = ExporterSettings().model_copy(update={"min_replicas": least, "max_replicas": least + more})
    wanted = wanted_replicas(lanes, speed, bounds, answers)

    assert least <= wanted <= least + more
    assert wanted > 0 or least + more == 0 or not any(lane.jobs for lane in lanes)


def unbounded(lanes: list[WaitingJobs], answer_seconds: float) -> int:
    """Return how many slow workers are wanted; of fast workers, one would be enough for the few jobs."""
    return wanted_replicas(lanes, 1e-4, ExporterSettings().model_copy(update={"max_replicas": 10**15}), answer_seconds)


@given(st.lists(NEAR, max_size=5), NEAR, st.integers(0, 10**6), LANES, NEAR_ANSWERS)
def test_further_jobs_never_want_fewer_workers(
    known: list[float], further: float, unread: int, others: list[WaitingJobs], answers: float
) -> None:
    alone = unbounded([WaitingJobs(known)], answers)

    assert unbounded([WaitingJobs([*known, further])], answers) >= alone
    assert unbounded([WaitingJobs([further, *known])], answers) >= alone
    assert unbounded([WaitingJobs(known), *others], answers) >= alone
    some = unbounded([WaitingJobs(known, unread)], answers)
    assert unbounded([WaitingJobs(known, unread + 1)], answers) >= some >= alone


@given(NEAR, st.floats(0, 2000), NEAR_ANSWERS, NEAR_ANSWERS, st.integers(0, 5))
def test_less_time_and_longer_answers_never_want_fewer_workers(
    left: float, less: float, answers: float, longer: float, unread: int
) -> None:
    wanted = unbounded([WaitingJobs([left], unread)], answers)

    assert unbounded([WaitingJobs([left - less], unread)], answers) >= wanted
    assert unbounded([WaitingJobs([left], unread)], answers + longer) >= wanted


@example([(0, 2), (10, 5), (10, 1), (49, 3), (1, 3), (1, 1), (59, 1), (1, 0), (69, 0)])  # gives 2 5 5 5 5 3 3 1 0
@given(st.lists(st.tuples(st.floats(0, 50), st.integers(0, 9)), max_size=40))
def test_the_hysteresis_is_the_highest_number_of_its_window(steps: list[tuple[float, int]]) -> None:
    hysteresis, seen, at = Hysteresis(60), [], 0.0
    for after, number in steps:
        at += after
        seen.append((at, number))
        assert hysteresis.follow(at, number) == max(value for when, value in seen if when >= at - 60)


@given(st.lists(st.lists(ANSWERS, max_size=5), max_size=9))
def test_the_time_of_a_pools_answers_is_that_of_one_of_its_workers_and_stays_when_they_are_gone(
    readings: list[list[float]],
) -> None:
    assert answer_seconds(0.0, [LONGEST_ANSWER_SECONDS, 20.0, 30.0]) == 30.0  # one odd worker does not decide
    seconds = 0.0
    for measured in readings:
        before, seconds = seconds, answer_seconds(seconds, measured)
        assert seconds in (measured or [before])
        assert min(measured, default=before) <= seconds <= max(measured, default=before)


def test_busy_workers_replace_the_assumption_within_a_minute_or_two_and_idle_ones_do_not() -> None:
    busy, idle = Throughput(assumed=1.0), Throughput(assumed=20.0)
    for second in range(0, 125, 5):
        busy.observe(second, done=second * 40, waiting=100_000, workers=2)
    for second in range(0, 3600, 5):
        idle.observe(second, done=second, waiting=3, workers=2)

    assert busy.jobs_per_second == pytest.approx(20, rel=0.15)
    assert idle.jobs_per_second == 20.0


def test_thousands_of_jobs_that_expire_at_once_do_not_make_a_worker_fast() -> None:
    throughput, done = Throughput(assumed=1.0), 0
    for second in range(0, 1800, 5):
        done += 20_000 if second == 900 else 10
        throughput.observe(second, done=done, waiting=100_000, workers=2)
        assert throughput.jobs_per_second < 1.1

    assert throughput.jobs_per_second == pytest.approx(1, rel=0.05)


def test_readings_that_cannot_be_compared_show_nothing() -> None:
    for before, after in (
        ((0, 0, 500, 2), (5, 500, 500, 3)),  # a worker came between the readings
        ((0, 900, 500, 2), (5, 500, 500, 2)),  # progress was lost
        ((5, 0, 500, 2), (5, 500, 500, 2)),  # no time passed
        ((0, 0, 500, 0), (5, 500, 500, 0)),  # no worker is known
    ):
        throughput = Throughput(assumed=1.0)
        throughput.observe(*before)
        throughput.observe(*after)
        assert throughput.jobs_per_second == 1.0, after
