"""A candidate in a lane of its own: the primary answers the candidate's jobs while no running worker reads the lane."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import topics as names
from schemas.rollout.facts import Step
from schemas.settings import KafkaSettings
from schemas.worker import LIVE_SECONDS, announcement, worker_key, write_announcement
from telemetry.hand_clock import SetClock
from tests.drawn import drawn
from tests.handlers import TOPICS
from tests.unit.echo_worker import working
from tests.unit.test_rollout_workers import ELSEWHERE, begin, job
from workers.inference.rollout.lanes import MOST_WORKERS, LaneReaders, LaneWatch

CANARY = (Step.CANARY_1, Step.CANARY_10, Step.CANARY_50, Step.CANARY_100)
REPLICAS = st.sampled_from(["w1", "w2", "w3"])
LANES = st.sampled_from([None, "big", "small"])
EVENTS = st.lists(
    st.tuples(st.sampled_from(["said", "ended", "passed"]), REPLICAS, LANES, st.floats(0, 1.5 * LIVE_SECONDS)),
    max_size=30,
)
"""Events in turn: a worker announces its lane, a worker ends, or seconds pass."""
FIELDS = st.sampled_from(["replica", "lane", "models", "at", "more"])
ANYTHING = st.none() | st.integers() | st.text(max_size=9) | st.lists(st.text(max_size=3), max_size=2)
NOISE = st.binary(max_size=60) | st.dictionaries(FIELDS, ANYTHING).map(lambda changed: json.dumps(changed).encode())


def said(replica: str, lane: str | None) -> tuple[bytes, bytes]:
    """A record with the announcement of a worker that reads this lane."""
    return worker_key(replica), write_announcement(announcement(replica, lane, ["next"], 0))


@pytest.mark.parametrize("step", CANARY)
async def test_the_primary_answers_each_job_of_the_canary_while_no_worker_reads_the_candidates_lane(step: Step) -> None:
    asked: list[str | None] = []

    def is_read(lane: str | None) -> bool:
        asked.append(lane)
        return False

    jobs = [job(job_id=f"j{number}") for number in range(1000)]
    async with working(ELSEWHERE) as worker:
        begin(worker, step)
        before = [(await worker.outputs(each))[0].topic for each in jobs]
        worker.handler.rollouts.is_read = is_read
        after = [(await worker.outputs(each))[0].topic for each in jobs]
    assert TOPICS.requests("big") in before
    assert {*after} == {TOPICS.results}
    assert {*asked} == {"big"}


async def test_a_promoted_models_jobs_go_to_its_lane_even_if_no_worker_reads_the_lane() -> None:
    async with working(ELSEWHERE) as worker:
        worker.handler.rollouts.is_read = lambda lane: False
        begin(worker, Step.PROMOTED)
        assert (await worker.outputs(job()))[0].topic == TOPICS.requests("big")


async def test_a_worker_answers_for_its_own_candidate_whatever_is_announced() -> None:
    async with working({"assistant": "small", "next": None}) as worker:
        worker.handler.rollouts.is_read = lambda lane: False
        begin(worker, Step.CANARY_100)
        assert (await worker.outputs(job()))[0].topic == TOPICS.results
        assert (await worker.outputs(job((names.FORWARDED, b"1"))))[0].topic == TOPICS.results


# -- announcements -------------------------------------------------------------------------------------------------


@given(EVENTS, st.lists(st.tuples(st.none() | st.binary(max_size=3), NOISE), max_size=5))
@settings(max_examples=drawn(100))
def test_a_lane_is_read_while_a_worker_announced_it_last_within_three_minutes_and_noise_changes_nothing(
    events: list[tuple[str, str, str | None, float]], noise: list[tuple[bytes | None, bytes]]
) -> None:
    clock = SetClock()
    readers = LaneReaders(clock)
    known: dict[str, tuple[str | None, float]] = {}
    for event, replica, lane, seconds in events:
        if event == "said":
            readers.apply(*said(replica, lane))
            known[replica] = lane, clock.now
        elif event == "ended":
            readers.apply(worker_key(replica), None)
            known.pop(replica, None)
        else:
            clock.now += seconds
        for key, value in noise:
            readers.apply(key, value)
        read = {lane for lane, at in known.values() if clock.now - at <= LIVE_SECONDS}
        assert {lane for lane in (None, "big", "small") if readers.has(lane)} == read


def test_workers_beyond_the_cap_are_kept_once_others_have_ended() -> None:
    clock = SetClock()
    readers = LaneReaders(clock)
    for number in range(MOST_WORKERS):
        readers.apply(*said(f"w{number}", None))
    readers.apply(*said("late", "big"))
    assert not readers.has("big")
    readers.apply(*said("w0", "small"))  # a known worker may still change its lane
    assert readers.has("small")
    clock.now += LIVE_SECONDS + 1
    readers.apply(*said("late", "big"))
    assert (readers.has("big"), readers.has(None)) == (True, False)


def test_every_lane_counts_as_read_until_the_announcements_are_known() -> None:
    watch = LaneWatch(KafkaSettings(), SetClock())
    assert watch.is_read("big")
    assert watch.reasons() == []
