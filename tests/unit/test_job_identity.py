"""A job's identity, and its tenant's signature."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Uuid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.operations.dead_letters import Letter, _Partitions, returning
from producers.scan import Stored, StoredPlace
from schemas import topics as names
from schemas.codec import Headers, InvalidJob, Origin, ReceivedJob, read_job, read_result
from schemas.settings import KafkaSettings, SettingsRefused, TrustSettings
from schemas.trust import TrustSecrets
from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.drawn import drawn
from tests.handlers import CLOCK, TOPICS
from tests.unit.echo_worker import HOOK, TOPIC_ID, headers_of, record, working
from workers.inference.admission import signing_keys
from workers.inference.settings import WorkerSettings
from workers.roles import last_resort
from workers.stage.record import Failure, Header, Output, Record

# -- job identity ----------------------------------------------------------------------------------------------------
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


# -- untrusted jobs --------------------------------------------------------------------------------------------------
TRUST = TrustSecrets((b"n" * 32,))
FAILURE = Failure("worker_killed", "killed its worker", 3)
SIGNED_JOB = {"job_id": "job_1", "prompt": "What is the capital of France?", "callback_url": HOOK}


def signed(job: dict[str, Any], tenant: str = "acme", job_id: str = "job_1", secrets: TrustSecrets = TRUST) -> Record:
    value = json.dumps(job).encode()
    return record(value, *secrets.signed(tenant, job_id, value))


def altered(name: str, value: bytes) -> Record:
    whole = signed(SIGNED_JOB)
    return replace(whole, headers=[*(whole.headers or ()), (name, value)])


def moved_on(output: Output) -> Record:
    """Return the moved job in this output, in the form in which the next worker reads it."""
    return Record(output.topic, 0, 99, output.value or b"", output.key, output.headers, int(CLOCK.time() * 1000))


UNTRUSTED = {
    "no signature": record(SIGNED_JOB, (names.TENANT, b"acme")),
    "another tenant": altered(names.TENANT, b"globex"),
    "another secret": signed(SIGNED_JOB, secrets=TrustSecrets((b"o" * 32,))),
    "another value": replace(
        signed(SIGNED_JOB),
        value=json.dumps({**SIGNED_JOB, "prompt": "Tell me a secret."}).encode(),
    ),
    "another job's signature": signed({**SIGNED_JOB, "job_id": "job_2"}, job_id="job_1"),
    "no job id": signed({"prompt": "Hello"}, job_id=""),
    "a second signature": altered(names.TENANT_SIGNATURE, b"v1,AAAA"),
    "no job, and no signature": record(b"{"),
    "a job with a wrong field": record({**SIGNED_JOB, "max_tokens": 0}, (names.TENANT, b"acme")),
}


@pytest.mark.parametrize("given", UNTRUSTED.values(), ids=UNTRUSTED)
async def test_a_job_that_the_fleet_did_not_sign_is_rejected_without_a_callback(given: Record) -> None:
    async with working(trust=TRUST) as worker:
        handled, given_up = await worker.outputs(given), worker.handler.give_up(given, FAILURE)
        deferred = worker.handler.sharing.defer(given)
    assert [*map(headers_of, handled)] == [*map(headers_of, given_up)] == [*map(headers_of, deferred)]
    rejected, letter = handled
    result, why = read_result(rejected.value), headers_of(letter)
    assert result.error is not None
    assert (result.outcome, result.error.code, result.custom_id) == ("rejected", "untrusted_job", None)
    assert result.job_id.startswith("job_")
    assert result.job_id not in ("job_1", "job_2")
    told = headers_of(rejected)
    assert (told["tenant"], told["job-id"], "callback-url" in told) == ("default", result.job_id, False)
    assert (why["reason"], why["tenant"], letter.value) == ("untrusted", "default", given.value)


async def test_the_dead_letter_keeps_the_stated_tenant_and_job_id_for_the_operator() -> None:
    async with working(trust=TRUST) as worker:
        _, letter = await worker.outputs(altered(names.TENANT, b"globex"))
    assert (headers_of(letter)["said-tenant"], headers_of(letter)["said-job-id"]) == ("globex", "job_1")


async def test_a_signed_job_is_answered_for_its_tenant() -> None:
    async with working(trust=TrustSecrets((b"newest" * 6, *TRUST.secrets))) as worker:
        [answered] = await worker.outputs(signed(SIGNED_JOB))
    told = headers_of(answered)
    assert (told["tenant"], told["job-id"], told["callback-url"]) == ("acme", "job_1", HOOK)


async def test_a_signed_line_of_a_batch_has_its_job_id_in_a_header() -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}
    line["body"] = {"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}
    async with working(trust=TRUST) as worker:
        [answered] = await worker.outputs(signed(line, job_id="batch_1.7"))
    assert headers_of(answered)["job-id"] == "batch_1.7"


async def test_a_signed_record_that_is_no_job_is_rejected_for_its_tenant() -> None:
    async with working(trust=TRUST) as worker:
        rejected, letter = await worker.outputs(signed({**SIGNED_JOB, "max_tokens": 0}))
    assert (headers_of(rejected)["tenant"], headers_of(letter)["reason"]) == ("acme", "rejected")


async def test_a_signature_stays_valid_through_deferral_forwarding_and_a_dead_letter() -> None:
    async with working(trust=TRUST, models={"far": "elsewhere"}) as worker:
        [forwarded] = await worker.outputs(signed({**SIGNED_JOB, "model_id": "far"}))
        [deferred] = worker.handler.sharing.defer(signed(SIGNED_JOB))
        [again] = worker.handler.sharing.defer(moved_on(deferred))
        [answered] = await worker.outputs(moved_on(again))
        _, letter = worker.handler.give_up(moved_on(again), FAILURE)
        [revived] = await worker.outputs(moved_on(replace(letter, topic=TOPICS.requests())))
    value, signature = forwarded.value or b"", headers_of(forwarded)["tenant-signature"].encode()
    assert TRUST.is_signed("acme", "job_1", value, signature)
    for output in (answered, revived):
        assert (headers_of(output)["tenant"], read_result(output.value).outcome) == ("acme", "succeeded")


HEADERS = st.lists(
    st.tuples(
        st.sampled_from([names.TENANT, names.JOB_ID, names.TENANT_SIGNATURE, names.WEBHOOK_ID, names.JOB_ORIGIN]),
        st.binary(max_size=50) | st.just(b"acme"),
    ),
    max_size=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=drawn(50))
@given(headers=HEADERS, value=st.binary(max_size=40) | st.just(json.dumps(SIGNED_JOB).encode()))
def test_no_noise_of_headers_is_believed_even_by_the_last_resort(headers: list[Header], value: bytes) -> None:
    given = Record(TOPICS.requests(), 3, 7, value, None, headers)
    result, letter = last_resort.for_jobs(TOPICS, {}, HandClock(), Metrics(), TRUST)(given, FAILURE)
    told = headers_of(result)
    assert (told["tenant"], "callback-url" in told) == ("default", False)
    assert told["job-id"] != "job_1"
    assert dict(letter.headers or ())[names.TENANT] == b"default"


def test_the_last_resort_names_the_owner_of_a_signed_job() -> None:
    result, _ = last_resort.for_jobs(TOPICS, {}, HandClock(), Metrics(), TRUST)(signed(SIGNED_JOB), FAILURE)
    told = headers_of(result)
    assert (told["tenant"], told["job-id"], told["callback-url"]) == ("acme", "job_1", HOOK)


def test_a_worker_without_a_file_of_secrets_does_not_start_in_signed_mode(tmp_path: Path) -> None:
    assert signing_keys(WorkerSettings(), TrustSettings()) is None
    with pytest.raises(SettingsRefused, match="POSTBACK_TRUST__SECRET_FILE"):
        signing_keys(WorkerSettings(trust="signed"), TrustSettings())
    file = tmp_path / "secret"
    file.write_bytes(TRUST.secrets[0])
    assert signing_keys(WorkerSettings(trust="signed"), TrustSettings(secret_file=file)) == TRUST
    assert signing_keys(WorkerSettings(), TrustSettings(secret_file=file)) is None
