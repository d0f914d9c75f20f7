"""No producer can give a record another job's identity: neither its `webhook-id` nor its request in the engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from confluent_kafka import Uuid
from hypothesis import given
from hypothesis import strategies as st

from operators.dead_letters import Letter, _Partitions, returning
from producers.scan import Stored, StoredPlace
from schemas.codec import Headers, InvalidJob, Origin, ReceivedJob, read_job, read_result
from schemas.settings import KafkaSettings
from tests.unit.echo_worker import TOPIC_ID, headers_of, record, working
from workers.stage.record import Failure, Output, Record

PLACE = Origin("u2tSXKJNTn6GAzrYv6bXfQ", 3, 41)
JOB = b'{"prompt": "Why is the sky blue?", "callback_url": "https://victim.example/hook"}'
NOW_MS = 1_700_000_000_000


def read(value: bytes, headers: Headers, place: Origin) -> ReceivedJob | InvalidJob:
    try:
        return read_job(value, headers, place, NOW_MS)
    except InvalidJob as invalid:
        return invalid


def moved(value: bytes, origin: Origin) -> list[tuple[str, bytes]]:
    """The headers that a worker adds to a job that it moves."""
    return [("webhook-id", origin.webhook_id(value).encode()), ("job-origin", str(origin).encode())]


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_a_moved_job_keeps_its_identity_whatever_the_uuid_of_its_topic_is(most: int, least: int) -> None:
    place = Origin(str(Uuid(most, least)), 3, 41)
    received = read(JOB, moved(JOB, place), Origin("anotherTopic", 0, 7))
    assert received.webhook_id == place.webhook_id(JOB)


def test_a_job_that_a_worker_moved_keeps_its_identity() -> None:
    there = Origin("anotherTopic", 0, 7)
    received = read(JOB, moved(JOB, PLACE), there)
    assert isinstance(received, ReceivedJob)
    assert (received.place, received.origin, received.webhook_id) == (there, PLACE, PLACE.webhook_id(JOB))
    assert received.job_id == f"job_{PLACE.digest}"


@pytest.mark.parametrize("dropped", ["webhook-id", "job-origin"])
def test_neither_header_of_an_identity_counts_without_the_other(dropped: str) -> None:
    headers = [header for header in moved(JOB, PLACE) if header[0] != dropped]
    there = Origin("anotherTopic", 0, 7)
    assert read(JOB, headers, there).webhook_id == there.webhook_id(JOB)


ORIGINS = st.builds(Origin, st.sampled_from([PLACE.topic_id, "B-_9", "by.name"]), st.integers(0, 3), st.integers(0, 99))
VALUES = st.sampled_from([JOB, JOB + b" ", b'{"prompt": 5}', b"", b"{", b'{"prompt": "x"}'])


@st.composite
def forged(draw: st.DrawFn) -> Headers:
    """Forged headers: noise, headers of another job, and mixtures of several jobs' headers in any order."""
    noise = st.binary(max_size=80)
    theirs = st.builds(moved, VALUES, ORIGINS).flatmap(st.sampled_from)
    named = st.tuples(st.sampled_from(["webhook-id", "job-origin", "job-id", "tenant", "deadline"]), noise | st.none())
    return draw(st.lists(theirs | named, max_size=6))


@given(VALUES, forged(), ORIGINS, VALUES, forged(), ORIGINS)
def test_no_headers_give_two_jobs_of_different_values_one_webhook_id(
    value: bytes, headers: Headers, place: Origin, other: bytes, others: Headers, elsewhere: Origin
) -> None:
    one, two = read(value, headers, place), read(other, others, elsewhere)
    assert (one.webhook_id == two.webhook_id) == ((value, one.origin) == (other, two.origin))
    if isinstance(one, ReceivedJob):
        assert one.place == place


@given(VALUES, forged(), ORIGINS)
def test_an_identity_from_headers_is_one_that_a_worker_would_have_written_for_this_very_value(
    value: bytes, headers: Headers, place: Origin
) -> None:
    found = read(value, headers, place)
    assert found.webhook_id == found.origin.webhook_id(value)
    if found.origin != place:
        assert dict(headers).items() >= dict(moved(value, found.origin)).items()


async def test_a_record_with_another_job_s_identity_neither_ends_that_job_nor_speaks_for_it() -> None:
    """The stranger's record has the victim's headers and a deadline of 50 ms; the engine runs both records at once."""
    async with working() as worker:
        victim = record({"prompt": "[[sleep 0.4]] the answer", "job_id": "victim"})
        answering = asyncio.create_task(worker.outputs(victim))
        await _until_asked(worker.engine, 1)
        soon = str(victim.timestamp_ms + 50).encode()
        own = moved(victim.value, Origin(TOPIC_ID, 3, 7))
        body = {"prompt": "[[sleep 30]]", "job_id": "victim"}
        stranger = record(body, *own, ("deadline", soon), ("job-id", b"victim"), offset=8)
        [expired] = await worker.outputs(stranger)
        [answered] = await answering
    assert read_result(expired.value).outcome == "expired"
    assert (read_result(answered.value).outcome, read_result(answered.value).text) == (
        "succeeded",
        "[[sleep 0.4]] the answer",
    )
    assert headers_of(expired)["webhook-id"] != headers_of(answered)["webhook-id"]


async def test_a_record_that_runs_twice_at_once_is_two_requests_for_the_engine() -> None:
    """A lost partition may come back, and its record may run again, while the engine still ends the first request."""
    async with working() as worker:
        given = record({"prompt": "[[sleep 30]]"})
        first, second = (asyncio.create_task(worker.outputs(given)) for _ in range(2))
        await _until_asked(worker.engine, 2)
        first.cancel()
        await asyncio.wait([first])
        assert worker.engine.load().running == 1
        assert not second.done()
        second.cancel()
        await asyncio.wait([second])


async def _until_asked(engine: Any, requests: int) -> None:
    while engine.load().running < requests:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("as_new_event", [False, True])
async def test_a_redriven_job_keeps_its_webhook_id_unless_it_is_to_be_a_new_event(as_new_event: bool) -> None:
    given = record({"prompt": "x", "callback_url": "https://example.com/hook"})
    async with working() as worker:
        failed, letter = worker.handler.give_up(given, Failure("worker_killed", "it ended its worker", 3))
        [answered] = await worker.outputs(_put_back(letter, as_new_event))
    told, again = headers_of(failed), headers_of(answered)
    assert (told["webhook-id"] == again["webhook-id"]) == (not as_new_event)
    assert told["job-id"] == again["job-id"]


def _put_back(letter: Output, as_new_event: bool) -> Record:
    """The record that a redrive writes for a dead letter, at its new place."""
    headers = [(name, value or b"") for name, value in letter.headers or ()]
    stored = Stored(letter.topic, StoredPlace(0, 0), NOW_MS, letter.key, letter.value, headers)
    partitions: _Partitions = {letter_topic(headers): 4}  # type: ignore[assignment]  # only its counts are read
    back = returning(Letter(stored, "job", None), KafkaSettings(), NOW_MS, partitions, as_new_event)
    return Record(back.topic, 3, 1234, back.value or b"", back.key, back.headers, NOW_MS)


def letter_topic(headers: list[tuple[str, bytes]]) -> str:
    return dict(headers)["source-topic"].decode()


def test_a_job_that_an_earlier_release_moved_gets_an_identity_of_its_own() -> None:
    """A job of an earlier release has a `webhook-id` without a `job-origin` to prove it, and has no result yet."""
    headers = [("webhook-id", b"msg_" + b"0a" * 16), ("job-id", b"job_1")]
    received = read(JOB, headers, PLACE)
    assert (received.job_id, received.webhook_id) == ("job_1", PLACE.webhook_id(JOB))
