"""The last resort writes outputs for any record; the outputs of a job carry that job's identity."""

from __future__ import annotations

import json
from collections.abc import Sequence
from unittest.mock import patch

from confluent_kafka import Producer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from operators.dead_letters import kind_of
from producers.scan import Stored, StoredPlace
from schemas import topics as names
from schemas.codec import Origin, read_job, read_result
from schemas.outcome import Outcome
from schemas.topics import Topics
from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.drawn import drawn
from workers.roles import last_resort
from workers.stage.dead_letters import MAX_LETTER_BYTES
from workers.stage.record import Failure, Header, Output, Record, size_of

TOPICS = Topics("fleet.")
FAILURE = Failure("handler_defect", "the worker can neither handle the record nor give it up (KeyError)", 1)
LARGEST_BYTES = 1_000_000
"""The size of the largest record that librdkafka accepts by default."""

PRODUCER = Producer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})

KNOWN_NAMES = st.sampled_from(
    [names.TENANT, names.JOB_ID, names.WEBHOOK_ID, names.TRACEPARENT, names.CALLBACK_URL, names.DEFERRED, names.LEFT]
)
HEADER_NAMES = st.one_of(KNOWN_NAMES, st.text(max_size=8), st.just("\ud800"), st.just("a\0b"))
HEADERS = st.lists(st.tuples(HEADER_NAMES, st.none() | st.binary(max_size=40)), max_size=6)
MANY: list[Header] = [("", b"")] * 200_000
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.text(max_size=5) | st.none(),
        "job_id": st.text(max_size=5) | st.integers(),
        "custom_id": st.text(max_size=5) | st.lists(st.none(), max_size=1),
        "callback_url": st.text(max_size=9) | st.just("https://[2001:db8::1::2]/hook") | st.just("https://a.example/h"),
    },
)
VALUES = st.one_of(
    st.binary(max_size=60),
    BODIES.map(lambda body: json.dumps(body).encode()),
    st.sampled_from([b"", b"[" * 100_000, b"x" * MAX_LETTER_BYTES, b"x" * 3_000_000]),
)
RECORDS = st.builds(
    Record,
    st.sampled_from([TOPICS.requests(), TOPICS.requests(bulk=True), TOPICS.results, "another"]),
    st.integers(0, 5),
    st.integers(0, 2**62),
    VALUES,
    st.none() | st.binary(max_size=20) | st.just(b"k" * 990_000),
    st.none() | HEADERS | st.just(MANY) | st.just([(names.TENANT, b"")] * 100_000),
    st.integers(-1, 2**62),
    st.none() | st.just("have a name that is not UTF-8"),
)


def sent(outputs: Sequence[Output]) -> None:
    """Pass the outputs to a real producer, which raises an error for a record that no broker would accept."""
    for output in outputs:
        size = len(output.value or b"") + len(output.key or b"") + size_of(output.headers or ())
        assert size <= LARGEST_BYTES
        PRODUCER.produce(output.topic, output.value, output.key, headers=list(output.headers or ()))
    PRODUCER.purge()
    PRODUCER.poll(0)


def outputs_for_a_job(record: Record) -> Sequence[Output]:
    ids = {TOPICS.requests(): "topic-uuid"}
    return last_resort.for_jobs(TOPICS, ids, HandClock(), Metrics())(record, FAILURE)


@example(Record(TOPICS.requests(), 0, 0, b'{"prompt":"x","callback_url":"https://[2001:db8::1::2]/hook"}'))
@settings(max_examples=drawn(30))
@given(RECORDS)
def test_a_job_has_one_failed_result_and_one_letter_that_can_be_told_apart_whatever_the_record_is(
    record: Record,
) -> None:
    result, letter = outputs_for_a_job(record)
    sent([result, letter])
    assert (result.topic, letter.topic) == (TOPICS.results, TOPICS.dead_letters)
    read = read_result(result.value)
    assert (read.outcome, read.error and read.error.code) == (Outcome.FAILED, "handler_defect")
    said, written = dict(result.headers or ()), dict(letter.headers or ())
    assert [said[name] for name in (names.TENANT, names.JOB_ID, names.WEBHOOK_ID)] == [
        written[name] for name in (names.TENANT, names.JOB_ID, names.WEBHOOK_ID)
    ]
    assert said[names.JOB_ID] == read.job_id.encode() == result.key
    assert written[names.REASON] == b"handler_defect"
    assert letter.value in (record.value, None)


@settings(max_examples=drawn(30))
@given(RECORDS)
def test_a_callback_has_one_letter_whatever_the_record_is(record: Record) -> None:
    (letter,) = last_resort.for_callbacks(TOPICS, Metrics())(record, FAILURE)
    sent([letter])
    written = dict(letter.headers or ())
    assert written[names.REASON] == b"handler_defect"
    assert written[names.SOURCE_OFFSET] == str(record.offset).encode()
    assert not written.keys() & set(names.WAITING_HEADERS)


JOB = {"prompt": "hello", "custom_id": "mine", "callback_url": "https://a.example/hook"}


def test_the_result_has_the_identity_and_the_callback_that_the_jobs_other_results_would_have() -> None:
    headers: list[Header] = [(names.TENANT, b"acme"), ("x", b"1")]
    record = Record(TOPICS.requests(), 3, 7, json.dumps(JOB).encode(), b"key", headers)
    result, letter = outputs_for_a_job(record)
    job = read_job(record.value, headers, Origin("topic-uuid", 3, 7), 0)
    assert dict(result.headers or ()) == {
        names.TENANT: b"acme",
        names.JOB_ID: job.job_id.encode(),
        names.WEBHOOK_ID: job.webhook_id.encode(),
        names.CALLBACK_URL: b"https://a.example/hook",
    }
    assert read_result(result.value).custom_id == "mine"
    stored = Stored(
        letter.topic,
        StoredPlace(0, 0),
        0,
        letter.key,
        letter.value,
        [(name, value or b"") for name, value in letter.headers or ()],
    )
    assert kind_of(stored, TOPICS) == "job"
    assert (letter.value, letter.key, dict(letter.headers or ())["x"]) == (record.value, b"key", b"1")


def test_a_job_that_cannot_be_read_is_named_only_by_its_place() -> None:
    record = Record(TOPICS.requests(), 3, 7, json.dumps(JOB).encode(), b"key", [(names.TENANT, b"acme")])
    with patch("workers.roles.last_resort.read_address", side_effect=RecursionError):
        result, letter = outputs_for_a_job(record)
    place = Origin("topic-uuid", 3, 7)
    assert dict(result.headers or ()) == {
        names.TENANT: b"default",
        names.JOB_ID: f"job_{place.digest}".encode(),
        names.WEBHOOK_ID: place.webhook_id(record.value).encode(),
    }
    assert dict(letter.headers or ())[names.SAID_TENANT] == b"acme"
