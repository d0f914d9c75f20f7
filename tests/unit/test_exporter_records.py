"""The exporter reads records of any content."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.ledgers import done_offsets
from operators.backlog import GroupProgress
from operators.exporter.facts import MOST_WORKERS, Facts
from operators.exporter.lanes import Lanes
from operators.exporter.open_jobs import OpenJobs
from operators.exporter.pool import ReadingTime, WorkerPool
from producers.scan import Stored, StoredPlace
from schemas import topics as names
from schemas.endpoint import EndpointState
from schemas.groups import INFERENCE_GROUP
from schemas.topics import LETTERS_KEPT_MS
from schemas.worker import announcement, worker_key, write_announcement
from tests.unit.exporter_reading import (
    NOW,
    SETTINGS,
    TOPICS,
    endpoint,
    job,
    letter,
    mark,
    standing,
    worker,
)
from tests.unit.test_any_stored_record import HEADERS, KEYS, TIMES, VALUES

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
    figures = WorkerPool(None, SETTINGS).figures({"default": [partition]}, 1, ReadingTime(NOW, 0.0))
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
    facts.add_mark(mark(2, NOW - 3_600_000))  # this mark belongs to an earlier topic of the same name
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
