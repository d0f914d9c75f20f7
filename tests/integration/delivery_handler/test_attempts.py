"""An attempt with a real keyring and real HTTP: the request that is POSTed, and the records that are written."""

from __future__ import annotations

import json
import logging

import pytest
from standardwebhooks import Webhook

from schemas.event import event_body
from schemas.signature import verify
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
from workers.delivery.keyring import Keyring
from workers.stage.record import Failure, Output, Record


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
    await make().handle(result_record(consumer.url))
    [(headers, body)] = consumer.requests
    secrets, public_keys = keyring.secrets("acme", clock.time()), keyring.public_keys("acme", clock.time())
    verify(headers, body, secrets, [], clock.time())
    verify(headers, body, [], public_keys, clock.time())
    assert [part.split(",")[0] for part in headers["webhook-signature"].split(" ")] == ["v1", "v1a"]
    assert (headers["webhook-id"], headers["traceparent"]) == ("msg_1", TRACEPARENT)
    assert headers["content-type"] == "application/json"
    assert body == event_body(RESULT, "msg_1", "acme")


async def test_the_official_library_verifies_a_callback(make: Maker, consumer: Consumer, keyring: Keyring) -> None:
    handler = make()
    # The library compares the timestamp with the machine's clock, so the handler's clock has to agree with it.
    make.clock.ms = int(SystemClock().time() * 1000)
    await handler.handle(result_record(consumer.url))
    [(headers, body)] = consumer.requests
    event = Webhook(keyring.secrets("acme", make.clock.time())[0]).verify(body, headers)
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
    assert headers_of_bytes(letter)["reason"] == b"unusable_result"
    assert detail.encode() in (headers_of_bytes(letter)["reason-detail"] or b"")


def headers_of_bytes(output: Output) -> dict[str, bytes | None]:
    return dict(output.headers or ())


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
