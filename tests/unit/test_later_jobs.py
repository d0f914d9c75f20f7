"""Jobs that start later: where they wait, when they return to their lane, and which times are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.door.awaiting import bounded
from gateway.errors import ApiError
from producers.jsonl import read_jobs
from schemas.codec import InvalidJob, Origin, read_job
from schemas.control import ControlState, JobControl, job_key_bytes, write_control
from schemas.job import Job
from schemas.topics import LATER_SECONDS, hop
from telemetry.hand_clock import HandClock
from tests.handlers import CLOCK, TOPICS
from tests.unit.codec_jobs import ORIGIN, TIMESTAMP_MS
from tests.unit.echo_worker import TOPIC_ID, headers_of, record, working
from workers.delivery.outputs import moved_on
from workers.delivery.tier_pace import TierPace
from workers.stage.record import Output, Record

DAY = 86_400
LANES = frozenset((*TOPICS.requests_of(None), *TOPICS.requests_of("gpu")))
DELAYS = {topic: delay for delay, topic in TOPICS.later.items()}
SHORTEST = min(LATER_SECONDS)


def later_by(seconds: float) -> float:
    return CLOCK.time() + seconds


def as_read(output: Output, at_ms: int, offset: int = 9) -> Record:
    """Return an output in the form in which a stage reads it again."""
    number = 0 if output.partition is None else output.partition
    return Record(output.topic, number, offset, output.value or b"", output.key, output.headers, at_ms)


# -- the worker ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", ["handled", "deferred"])
@pytest.mark.parametrize(("seconds", "tier"), [(3, 5), (100, 30), (3000, 300), (30_000, 21_600)])
async def test_a_job_whose_time_has_not_come_moves_to_a_tier_with_its_identity(
    seconds: float, tier: float, way: str
) -> None:
    begins = later_by(seconds)
    given = record(None, ("tenant", b"acme"), ("lane", b"forged"), not_before=begins, ttl_seconds=60)
    async with working() as worker:
        [output] = await worker.outputs(given) if way == "handled" else worker.handler.sharing.defer(given)
    origin = Origin(TOPIC_ID, 3, 7)
    assert (output.topic, output.value, output.key, output.partition) == (
        TOPICS.later[tier],
        given.value,
        given.key,
        given.partition,
    )
    said = headers_of(output)
    assert seconds * 1000 - 5000 < int(said.pop("left")) <= seconds * 1000
    assert int(said.pop("written")) <= CLOCK.time() * 1000 + 1
    assert said == {
        "tenant": "acme",
        "job-id": f"job_{origin.digest}",
        "webhook-id": origin.webhook_id(given.value),
        "job-origin": str(origin),
        "deadline": str(round(1000 * begins) + 60_000),
        "lane": TOPICS.requests(),
        "not-before": str(round(1000 * begins)),
    }
    assert worker.sample("postback_jobs_total", outcome="succeeded") == 0


async def test_a_job_whose_time_has_come_is_answered() -> None:
    async with working() as worker:
        assert (await worker.result(record(not_before=later_by(-1)))).outcome == "succeeded"


async def test_a_job_for_a_model_that_no_worker_has_yet_waits_for_its_time() -> None:
    async with working(model_wait_seconds=0) as worker:
        [output] = await worker.outputs(record(not_before=later_by(9), model_id="tomorrow"))
    assert output.topic in DELAYS


async def test_a_cancelled_job_ends_as_soon_as_a_worker_meets_it_and_starts_nothing() -> None:
    given = record(not_before=later_by(900), job_id="j1")
    at_ms = round(1000 * CLOCK.time())
    cancelled = JobControl(tenant="default", job_id="j1", state=ControlState.CANCELLED, at=at_ms)
    async with working() as worker:
        worker.handler.cancellations.apply(job_key_bytes(cancelled.key), write_control(cancelled))
        result = await worker.result(given)
    assert (result.outcome, result.usage) == ("cancelled", None)


# -- the tiers -----------------------------------------------------------------------------------------------------
@given(
    st.floats(0.001, 6 * DAY),
    st.sampled_from([*LANES, "fleet.model_requests.gone"]),
    st.lists(st.floats(0, 2), min_size=1, max_size=9),
    st.floats(-50, 50),
)
def test_a_job_returns_to_its_lane_once_after_its_time_and_within_the_shortest_tier(
    seconds: float, lane: str, delays: Sequence[float], skew: float
) -> None:
    """Delivery's clock differs from the worker's by `skew` seconds, and records leave their tiers late by `delays`."""
    clock = HandClock(1_764_700_000.0)
    begins_ms = round(1000 * (clock.time() + seconds))
    headers = [("tenant", b"acme"), ("lane", lane.encode()), ("own", b"1")]
    given = Record(lane, 5, 1, b"job", b"key", headers)
    left = begins_ms - round(1000 * clock.time())
    first = Output(
        TOPICS.later[hop(left, LATER_SECONDS)],
        b"job",
        b"key",
        [*headers, ("not-before", str(begins_ms).encode()), ("left", str(left).encode())],
        5,
    )
    job, moves, late = as_read(first, 0), 0, 0.0
    while job.topic in DELAYS:
        tier, delay = DELAYS[job.topic], delays[moves % len(delays)]
        clock.now += tier + delay
        late += delay
        output = moved_on(job, round(1000 * tier), round(1000 * (clock.time() + skew)), TOPICS, LANES)
        job, moves = as_read(output, 0), moves + 1
    there = lane if lane in LANES else TOPICS.requests()
    assert (job.topic, job.partition, job.value, job.key) == (there, given.partition, given.value, given.key)
    assert job.headers == [("tenant", b"acme"), ("own", b"1")]
    assert 1000 * (clock.time() + skew) >= begins_ms - 1
    assert clock.time() + skew - begins_ms / 1000 <= SHORTEST + max(delays) + max(0.0, skew) + SHORTEST * (skew > 0)
    assert moves <= 80


@given(
    st.lists(st.tuples(st.sampled_from(["lane", "not-before", "left", "written", "x"]), st.binary(max_size=20))),
    st.sampled_from(sorted(DELAYS)),
)
def test_headers_of_noise_move_a_job_to_a_tier_or_to_a_lane_that_exists(
    headers: list[tuple[str, bytes | None]], topic: str
) -> None:
    job = Record(topic, 2, 1, b"job", None, headers)
    output = moved_on(job, round(1000 * DELAYS[topic]), TIMESTAMP_MS, TOPICS, LANES)
    assert output.topic in {*DELAYS, *LANES}
    assert (output.value, output.partition) == (b"job", 2)


def test_a_job_with_forged_headers_leaves_the_tiers_after_six_days() -> None:
    """Any producer may write to the tiers, and Kafka would keep a job that is rewritten for ever."""
    clock = HandClock(1_764_700_000.0)
    headers = [("not-before", b"9" * 15), ("left", b"9" * 15)]
    job, waited = Record(TOPICS.later[21_600], 2, 1, b"job", None, headers), 0.0
    while job.topic in DELAYS:
        tier = DELAYS[job.topic]
        clock.now, waited = clock.now + tier, waited + tier
        assert waited <= 6 * DAY + 21_600
        job = as_read(moved_on(job, round(1000 * tier), round(1000 * clock.time()), TOPICS, LANES), 0)
    assert job.topic == TOPICS.requests()


@pytest.mark.parametrize("way", ["handled", "deferred"])
@pytest.mark.parametrize(
    ("days", "deadline_days", "ahead_days", "is_late"),
    [(5.9, None, 0, False), (5.9, None, 3, False), (6.1, None, 3, True), (6.5, 6.9, 0, False), (6.5, 7.1, 3, True)],
)
async def test_a_job_may_not_end_later_because_its_timestamp_lies_ahead(
    days: float, deadline_days: float | None, ahead_days: int, is_late: bool, way: str
) -> None:
    """The codec counts from the record's timestamp, which the producer may set."""
    deadline = [] if deadline_days is None else [("deadline", b"%d" % round(1000 * later_by(deadline_days * DAY)))]
    given = record(None, *deadline, not_before=later_by(days * DAY), ttl_seconds=60)
    given.timestamp_ms += ahead_days * DAY * 1000
    async with working() as worker:
        outputs = await worker.outputs(given) if way == "handled" else worker.handler.sharing.defer(given)
    assert [output.topic in DELAYS for output in outputs] == ([False, False] if is_late else [True])
    if is_late:
        assert "not_before: the job would end too late" in (outputs[0].value or b"").decode()


def test_a_clock_that_is_behind_by_a_year_releases_a_job_after_its_tiers_all_the_same() -> None:
    begins_ms = TIMESTAMP_MS + 30_000
    headers = [("lane", TOPICS.requests().encode()), ("not-before", str(begins_ms).encode()), ("left", b"30000")]
    job = Record(TOPICS.later[30], 2, 1, b"job", None, headers)
    assert moved_on(job, 30_000, begins_ms - 366 * DAY * 1000, TOPICS, LANES).topic == TOPICS.requests()


def test_a_tier_of_jobs_releases_its_records_after_its_delay() -> None:
    clock = HandClock(1_764_700_000.0)
    now_ms = round(1000 * clock.time())
    pace = TierPace(TOPICS, clock)
    for delay, topic in TOPICS.later.items():
        assert pace.due_ms(Record(topic, 0, 0, b"job", None, [], now_ms)) == now_ms + 1000 * delay


# -- the refused times ---------------------------------------------------------------------------------------------
def refused(not_before: object, *headers: tuple[str, bytes], **fields: object) -> str | None:
    value = json.dumps({"prompt": "x", "not_before": not_before, **fields}).encode()
    try:
        read_job(value, headers, ORIGIN, TIMESTAMP_MS)
    except InvalidJob as invalid:
        return str(invalid)
    return None


def test_the_ttl_counts_from_the_time_at_which_a_job_may_start() -> None:
    begins = TIMESTAMP_MS // 1000 + 3600
    value = json.dumps({"prompt": "x", "not_before": begins, "ttl_seconds": 60}).encode()
    assert read_job(value, None, ORIGIN, TIMESTAMP_MS).deadline_ms == 1000 * begins + 60_000
    past = json.dumps({"prompt": "x", "not_before": begins - 7200, "ttl_seconds": 60}).encode()
    assert read_job(past, None, ORIGIN, TIMESTAMP_MS).deadline_ms == TIMESTAMP_MS + 60_000


@given(st.integers(1, 5 * DAY), st.integers(1, 6 * DAY))
def test_a_job_lives_six_days_at_most_from_when_it_is_sent(seconds: int, ttl: int) -> None:
    said = refused(TIMESTAMP_MS / 1000 + seconds, ttl_seconds=ttl)
    assert (said is None) == (seconds + ttl <= 6 * DAY)
    if said is not None:
        assert said.startswith("not_before: with `ttl_seconds` the job would end ")
        assert "at most 6 are possible" in said
        assert "retention.ms" in said


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (TIMESTAMP_MS, "less than or equal to 10000000000"),
        (60, "greater than or equal to 1000000000"),
        ("2026-03-01T22:00:00Z", "valid number"),
        (math.inf, "finite number"),
    ],
)
def test_a_time_that_is_no_unix_seconds_is_refused_by_its_field(value: object, reason: str) -> None:
    said = refused(value)
    assert said is not None
    assert said.startswith("not_before:")
    assert reason in said or math.inf == value


def test_a_time_past_the_stated_deadline_is_refused() -> None:
    begins = TIMESTAMP_MS // 1000 + 3600
    assert refused(begins, ("deadline", str(1000 * begins + 1).encode())) is None
    assert refused(begins, ("deadline", str(1000 * begins).encode())) == (
        "not_before: is past the job's deadline; choose an earlier time"
    )


def test_a_file_of_jobs_is_checked_by_the_present_time() -> None:
    clock = HandClock(TIMESTAMP_MS / 1000)
    lines = [json.dumps({"prompt": "x", "not_before": clock.time() + days * DAY}).encode() for days in (4, 5.5)]
    lines.append(b'{"prompt": "y"}')
    read = read_jobs(lines, not_before=clock.time() + DAY, clock=clock)
    assert [problem.line for problem in read.problems] == [2]
    assert [job.not_before for job in read.jobs] == [clock.time() + 4 * DAY, clock.time() + DAY]
    assert read_jobs(lines, not_before=clock.time() + 6 * DAY, clock=clock).invalid == 2


def test_a_request_that_waits_for_its_answer_takes_no_job_that_starts_later() -> None:
    with pytest.raises(ApiError, match="not_before: goes with requests that do not wait"):
        bounded(Job(prompt="x", not_before=2e9), 60)


def test_a_result_of_a_batch_line_has_the_line_s_time() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "not_before": 2e9}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    received = read_job(json.dumps(line).encode(), [("deadline", b"2000000060000")], ORIGIN, 2_000_000_000_000 - DAY)
    assert received.job.not_before == 2e9
