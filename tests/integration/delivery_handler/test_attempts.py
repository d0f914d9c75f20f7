"""An attempt with a real keyring and real HTTP: the request that is POSTed, and the records that are written."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json
from standardwebhooks import Webhook

from cli.operate.endpoint_deliveries import timeline
from cli.operations.deliveries import read_step
from producers.scan import Stored, StoredPlace
from schemas import topics as names
from schemas.event import event_body
from schemas.settings import KafkaSettings
from schemas.signature import NoMatchingSignature, verify
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.integration.delivery_handler.records import (
    NOW_MS,
    RESULT,
    TOPICS,
    TRACEPARENT,
    Consumer,
    JumpingClock,
    Maker,
    attempt_of,
    carried_to,
    delivered_from,
    headers_of,
    result_record,
    topics_of,
)
from workers.delivery import outputs
from workers.delivery.endpoint_events import UnusableRecord, read_endpoint_event
from workers.delivery.keyring import Keyring
from workers.delivery.post import CallbackAnswer, FailedDelivery, FailureReason, excerpt_of
from workers.delivery.settings import DeliverySettings
from workers.stage.record import Failure, Header, Record


async def test_a_result_without_a_callback_is_only_stored(make: Maker) -> None:
    assert list(await make().handle(result_record(None))) == []


async def test_a_delivered_callback_leaves_one_attempt_record(
    make: Maker, consumer: Consumer, metrics: Metrics
) -> None:
    outputs = await make().handle(result_record(consumer.url))
    assert topics_of(outputs) == [TOPICS.attempts]
    assert attempt_of(outputs) == {
        "webhook_id": "msg_1",
        "job_id": "job_1",
        "tenant": "acme",
        "origin": consumer.origin,
        "attempt": 1,
        "at": NOW_MS,
        "status": 200,
        "duration_ms": 0.0,
        "error": None,
        "bytes": len(event_body(RESULT, "msg_1", "acme")),
    }
    value = metrics.registry.get_sample_value
    assert value("postback_callbacks_total", {"result": "delivered"}) == 1
    assert value("postback_job_seconds_count", {"phase": "deliver"}) == 1


async def test_the_callback_is_signed_so_that_either_kind_of_key_verifies_it(
    make: Maker, consumer: Consumer, keyring: Keyring, clock: JumpingClock
) -> None:
    """Also the official library, which compares the timestamp with the machine's clock."""
    clock.ms = int(SystemClock().time() * 1000)
    await make().handle(result_record(consumer.url))
    [(headers, body)] = consumer.requests
    secrets, public_keys = keyring.secrets("acme", clock.time()), keyring.public_keys("acme", clock.time())
    verify(headers, body, secrets, [], clock.time())
    verify(headers, body, [], public_keys, clock.time())
    assert [part.split(",")[0] for part in headers["webhook-signature"].split(" ")] == ["v1", "v1a"]
    assert (headers["webhook-id"], headers["traceparent"]) == ("msg_1", TRACEPARENT)
    assert headers["content-type"] == "application/json"
    assert body == event_body(RESULT, "msg_1", "acme")
    event = Webhook(secrets[0]).verify(body, headers)
    assert (event["type"], event["data"]["id"]) == ("inference.succeeded", "job_1")


async def test_a_failure_sends_the_record_to_its_tier_with_everything_it_carried(
    make: Maker, consumer: Consumer, metrics: Metrics
) -> None:
    consumer.statuses = [500]
    outputs = await make().handle(result_record(consumer.url))
    assert topics_of(outputs) == [TOPICS.attempts, TOPICS.tier(5)]
    assert (attempt_of(outputs)["status"], attempt_of(outputs)["error"]) == (500, "server_error")
    waiting = outputs[1]
    not_before = int(headers_of(waiting)["not-before"])
    assert NOW_MS + 5_000 <= not_before <= NOW_MS + 5_500
    assert headers_of(waiting) == {
        **carried_to(consumer.url),
        "attempt": "1",
        "not-before": str(not_before),
        "left": str(not_before - NOW_MS),
        "waited": str(not_before - NOW_MS),
        "written": str(NOW_MS),
        "result-at": str(NOW_MS),
    }
    assert (waiting.value, waiting.key, waiting.partition) == (RESULT, b"job_1", None)
    assert metrics.registry.get_sample_value("postback_callbacks_total", {"result": "server_error"}) == 1


async def test_a_repeat_has_the_same_id_and_body_and_a_fresh_timestamp(
    make: Maker, consumer: Consumer, clock: JumpingClock, keyring: Keyring
) -> None:
    consumer.statuses, handler = [500, 200], make()
    outputs = await handler.handle(result_record(consumer.url))
    clock.ms += 6_000
    outputs = await handler.handle(delivered_from(outputs[1], 0, NOW_MS))
    assert topics_of(outputs) == [TOPICS.attempts]
    assert attempt_of(outputs)["attempt"] == 2
    (first, first_body), (second, second_body) = consumer.requests
    assert first_body == second_body
    assert first["webhook-id"] == second["webhook-id"]
    assert int(second["webhook-timestamp"]) == int(first["webhook-timestamp"]) + 6
    verify(second, second_body, keyring.secrets("acme", clock.time()), [], clock.time())


async def test_a_refused_callback_is_a_dead_letter_that_names_the_field(make: Maker, consumer: Consumer) -> None:
    outputs = await make(allow=()).handle(result_record(consumer.url))
    assert topics_of(outputs) == [TOPICS.attempts, TOPICS.dead_letters]
    assert (attempt_of(outputs)["status"], attempt_of(outputs)["error"]) == (None, "refused")
    assert headers_of(outputs[1])["reason"] == "callback_refused"
    assert headers_of(outputs[1])["reason-detail"] == "callback_url: the address is not public"
    assert consumer.requests == []


@pytest.mark.parametrize(
    ("record", "detail"),
    [
        (result_record("http://h.example/", b"{not json"), "value"),
        (result_record("http://h.example/", b"{}"), "job_id"),
        (result_record("http://h.example/", webhook_id=None), "the header webhook-id is missing"),
        (result_record("http://h.example/", webhook_id=b"a\r\nb"), "the header webhook-id is not printable"),
        (result_record("http://h.example/", tenant=b"a b"), "the header tenant is not printable"),
        (result_record("http://h.example/", tenant=b"a.b"), "the header tenant is not 1 to 63 letters"),
        (result_record("http://h.example/", attempt=b"-1"), "the header attempt is not a number"),
        (result_record("http://h.example/", callback_url=b"\xff"), "the header callback-url is not UTF-8"),
    ],
)
async def test_a_record_that_is_no_result_with_a_callback_is_a_dead_letter(
    make: Maker, record: Record, detail: str
) -> None:
    [letter] = await make().handle(record)
    assert (letter.topic, letter.value) == (TOPICS.dead_letters, record.value)
    said = dict(letter.headers or ())
    assert said["reason"] == b"unusable_result"
    assert detail.encode() in (said["reason-detail"] or b"")


async def test_an_invalid_traceparent_is_left_out(make: Maker, consumer: Consumer) -> None:
    await make().handle(result_record(consumer.url, traceparent=b"00-x\r\ny"))
    assert "traceparent" not in consumer.requests[0][0]


async def test_a_record_that_the_stage_gives_up_is_a_dead_letter(make: Maker) -> None:
    record = result_record("http://h.example/", attempt=b"2")
    [letter] = make().give_up(record, Failure("worker_killed", "it died three times", 3))
    assert letter.topic == TOPICS.dead_letters
    said = headers_of(letter)
    assert (said["reason"], said["reason-detail"], said["attempts"]) == ("worker_killed", "it died three times", "3")


async def test_a_rotated_key_signs_without_a_restart(
    make: Maker, consumer: Consumer, keyring: Keyring, clock: JumpingClock
) -> None:
    handler = make()
    await handler.handle(result_record(consumer.url))
    other_process = Keyring.load(keyring.path)
    other_process.rotate("acme", clock.time())
    clock.ms += 2_000
    await handler.handle(result_record(consumer.url))
    headers, body = consumer.requests[1]
    for secret in other_process.secrets("acme", clock.time()):
        verify(headers, body, [secret], [], clock.time())
    assert headers["webhook-signature"].count("v1,") == 2


@pytest.mark.parametrize("status", [200, 500, 410])
async def test_neither_path_nor_query_of_a_callback_reaches_logs_or_attempts(
    make: Maker, consumer: Consumer, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.DEBUG)
    consumer.statuses = [status]
    outputs = await make().handle(result_record(consumer.url))
    ours = [record.getMessage() for record in caplog.records if record.name == "postback"]
    assert any(consumer.origin in line for line in ours)
    said = "".join(ours) + json.dumps(attempt_of(outputs)) + "".join(headers_of(outputs[-1]).get("reason-detail", ""))
    assert "path-token" not in said
    assert "query-token" not in said
    assert "Paris" not in said


EVENT = json.dumps({"id": "evt_1", "object": "event", "type": "batch.completed", "data": {"id": "batch_1"}}).encode()
ENDPOINT = "we_0123456789abcdef"
NOW = NOW_MS / 1000


def event_record(url: str, versions: str = "1", more: Sequence[Header] = ()) -> Record:
    headers: list[Header] = [
        (names.TENANT, b"acme"),
        (names.CALLBACK_URL, url.encode()),
        (names.WEBHOOK_ID, b"evt_1"),
        (names.JOB_ID, b"batch_1"),
        (names.WEBHOOK_ENDPOINT, ENDPOINT.encode()),
        (names.WEBHOOK_ENDPOINT_VERSIONS, versions.encode()),
        *more,
    ]
    return Record(TOPICS.events, 0, 0, EVENT, b"batch_1", headers, NOW_MS)


async def test_an_event_is_sent_as_it_stands_and_verifies_with_its_endpoints_secrets_only(
    make: Maker, consumer: Consumer, keyring: Keyring
) -> None:
    more = [(names.WEBHOOK_HTTP_HEADER, b"Authorization: Bearer of-the-consumer")]
    [attempt] = await make().handle(event_record(consumer.url, "2,1", more))
    [(headers, body)] = consumer.requests
    assert body == EVENT
    assert headers["authorization"] == "Bearer of-the-consumer"
    for version in (2, 1):
        verify(headers, body, [keyring.endpoint_secret("acme", ENDPOINT, version, NOW)], [], NOW)
    verify(headers, body, [], keyring.public_keys("acme", NOW), NOW)
    others = [("acme", "we_fedcba9876543210", 1), ("other", ENDPOINT, 1), ("acme", ENDPOINT, 3)]
    secrets = [keyring.endpoint_secret(*other, NOW) for other in others] + keyring.secrets("acme", NOW)
    with pytest.raises(NoMatchingSignature):
        verify(headers, body, secrets, [], NOW)
    assert (attempt.topic, attempt.key) == (TOPICS.attempts, b"batch_1")


async def test_after_a_rotation_of_the_master_old_and_new_secrets_verify_until_the_old_one_ends(
    make: Maker, consumer: Consumer, keyring: Keyring, clock: JumpingClock
) -> None:
    before = keyring.endpoint_secret("acme", ENDPOINT, 1, NOW)
    handler = make()
    await handler.handle(event_record(consumer.url))
    keyring.rotate_master(NOW, 3600)
    after = keyring.endpoint_secret("acme", ENDPOINT, 1, NOW)
    assert before != after
    clock.ms += 2_000
    await handler.handle(event_record(consumer.url))
    clock.ms += 3_600_000
    await handler.handle(event_record(consumer.url))
    _, (both, body), (newer, _) = consumer.requests
    for secret in (before, after):
        verify(both, body, [secret], [], NOW + 2)
    verify(newer, body, [after], [], NOW + 3602)
    with pytest.raises(NoMatchingSignature):
        verify(newer, body, [before], [], NOW + 3602)


async def test_a_failed_event_waits_in_a_tier_with_its_endpoint_and_is_sent_again_unchanged(
    make: Maker, consumer: Consumer, clock: JumpingClock
) -> None:
    consumer.statuses = [500, 200]
    handler = make()
    waiting = next(each for each in await handler.handle(event_record(consumer.url)) if each.topic != TOPICS.attempts)
    assert waiting.topic == TOPICS.tiers[5]
    clock.ms += 6_000
    await handler.handle(delivered_from(waiting, 0, clock.ms))
    [(first, body), (second, same)] = consumer.requests
    assert (body, first["webhook-id"]) == (same, second["webhook-id"])


@pytest.mark.parametrize("stated", ["by the endpoint", "for the origin", "by both"])
async def test_events_beyond_a_rate_limit_wait_in_a_tier_without_an_attempt(
    make: Maker, consumer: Consumer, stated: str
) -> None:
    own = [(names.WEBHOOK_RATE_LIMIT, b"50" if stated == "by both" else b"1")] if stated != "for the origin" else []
    by_origin = {consumer.origin: 1.0} if stated != "by the endpoint" else {}
    handler = make(DeliverySettings(origin_rate_limits=by_origin, destination_wait_seconds=0.001))
    [attempt] = await handler.handle(event_record(consumer.url, more=own))
    [deferred] = await handler.handle(event_record(consumer.url, more=own))
    assert (attempt.topic, deferred.topic) == (TOPICS.attempts, TOPICS.tiers[5])
    said = dict(deferred.headers or ())
    assert (said[names.DEFERRED], said[names.DEFERRED_REASON]) == (b"1", b"rate_limited")
    assert names.ATTEMPT not in said
    elsewhere = event_record(consumer.url.replace("127.0.0.1", "127.0.0.2"))
    assert (await handler.handle(elsewhere))[0].topic == TOPICS.attempts
    assert len(consumer.requests) == 1


MALFORMED: list[list[Header]] = [
    [(names.WEBHOOK_ENDPOINT, b"we_x/../y")],
    [(names.WEBHOOK_ENDPOINT, b"")],
    [(names.WEBHOOK_ENDPOINT_VERSIONS, b"0")],
    [(names.WEBHOOK_ENDPOINT_VERSIONS, b"1,2,3,4,5,6,7,8,9")],
    [(names.WEBHOOK_ENDPOINT_VERSIONS, None)],
    [(names.WEBHOOK_RATE_LIMIT, b"0")],
    [(names.WEBHOOK_RATE_LIMIT, b"1.5")],
    [(names.WEBHOOK_HTTP_HEADER, b"Host: other.example")],
    [(names.WEBHOOK_HTTP_HEADER, b"Webhook-Signature: v1,forged")],
    [(names.WEBHOOK_HTTP_HEADER, b"X-A: b\r\nX-C: d")],
    [(names.WEBHOOK_HTTP_HEADER, b"no colon")],
    [(names.WEBHOOK_HTTP_HEADER, None)],
    [(names.WEBHOOK_HTTP_HEADER, b"X-A: 1"), (names.WEBHOOK_HTTP_HEADER, b"x-a: 2")],
    [(names.WEBHOOK_HTTP_HEADER, f"X-{number}: 1".encode()) for number in range(17)],
]


@pytest.mark.parametrize("malformed", MALFORMED)
async def test_an_event_with_malformed_headers_is_a_dead_letter_and_is_not_sent(
    make: Maker, consumer: Consumer, malformed: list[Header]
) -> None:
    [letter] = await make().handle(event_record(consumer.url, more=malformed))
    assert letter.topic == TOPICS.dead_letters
    assert consumer.requests == []


_NAMES = st.sampled_from(
    [names.WEBHOOK_ENDPOINT, names.WEBHOOK_ENDPOINT_VERSIONS, names.WEBHOOK_HTTP_HEADER, names.WEBHOOK_RATE_LIMIT]
)
_VALUES = st.none() | st.binary(max_size=80) | st.from_regex(rb"[A-Za-z-]{1,20}: ?[ -~]{0,40}", fullmatch=True)


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=20))
def test_any_headers_name_an_endpoint_or_are_refused(headers: list[Header]) -> None:
    try:
        event = read_endpoint_event(headers)
    except UnusableRecord:
        return
    lines = [f"{name}: {value}" for name, value in event.http_headers.items()]
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert 1 <= len(event.versions) <= 8
    assert event.rate_limit is None or 1 <= event.rate_limit < 100_000


FLEET = KafkaSettings(topic_prefix="t.")
BAD = "schöner Fehler: \x1b[31mno such column\n".encode() * 100


@pytest.mark.parametrize("status", [200, 422, 503])
# Without the setting there is no excerpt; a cut after four bytes would be inside the ö.
@pytest.mark.parametrize(("limit", "length"), [(1024, 1024), (4, 3), (0, None)])
async def test_the_beginning_of_the_answer_is_in_the_attempts_record_and_in_no_log(
    make: Maker, consumer: Consumer, caplog: pytest.LogCaptureFixture, status: int, limit: int, length: int | None
) -> None:
    caplog.set_level(logging.DEBUG)
    consumer.statuses, consumer.body = [status], BAD
    settings = DeliverySettings(answer_excerpt_bytes=limit) if limit else DeliverySettings()
    written = await make(settings).handle(result_record(consumer.url))
    attempt = attempt_of(written)
    assert (attempt["status"], "answer" in attempt) == (status, length is not None)
    kept = str(attempt.get("answer", "")).encode()
    assert (len(kept), BAD.startswith(kept)) == (length or 0, True)
    others = [output for output in written if output.topic != TOPICS.attempts]
    assert "no such column" not in repr([headers_of(output) for output in others])
    assert "no such column" not in caplog.text


@given(st.binary(min_size=1, max_size=1024))
def test_any_bytes_of_an_answer_are_one_line_of_the_timeline(body: bytes) -> None:
    excerpt = excerpt_of(CallbackAnswer(status=500, excerpt=bytearray(body)))
    pending = outputs.read_pending(result_record("https://hooks.example/in"))
    assert pending is not None
    outcome = FailedDelivery(FailureReason.SERVER_ERROR, 0.001, 500, answer_excerpt=excerpt)
    written = outputs.attempt(pending, TOPICS, outcome, 1, 2)
    assert from_json(written.value or b"").get("answer") == excerpt
    step = read_step(
        Stored(TOPICS.attempts, StoredPlace(0, 0), 1, written.key, written.value, []), KafkaSettings(topic_prefix="t.")
    )
    assert step is not None
    [line] = timeline([step])
    assert len(line.splitlines()) == 1
    assert {unicodedata.category(character) for character in line}.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
    assert " attempt 1 of 10 failed: server_error, status 500, 1.0 ms, 2 bytes" in line
    assert "excerpt" not in repr(outcome)
