"""Ready events of `callback_events` are sent unchanged, and signed with the endpoint's own secret."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import topics as names
from schemas.signature import NoMatchingSignature, verify
from tests.integration.delivery_handler.records import NOW_MS, TOPICS, Consumer, JumpingClock, Maker
from workers.delivery.endpoint_events import read_endpoint_event
from workers.delivery.keyring import Keyring
from workers.delivery.unusable import UnusableRecord
from workers.stage.record import Header, Record

BODY = json.dumps({"id": "evt_1", "object": "event", "type": "batch.completed", "data": {"id": "batch_1"}}).encode()
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
    return Record(TOPICS.events, 0, 0, BODY, b"batch_1", headers, NOW_MS)


async def test_an_event_is_sent_as_it_stands_and_verifies_with_its_endpoints_secret(
    make: Maker, consumer: Consumer, keyring: Keyring
) -> None:
    more = [(names.WEBHOOK_HTTP_HEADER, b"Authorization: Bearer of-the-consumer")]
    [attempt] = await make().handle(event_record(consumer.url, "2,1", more))
    [(headers, body)] = consumer.requests
    assert body == BODY
    assert headers["authorization"] == "Bearer of-the-consumer"
    for version in (2, 1):
        verify(headers, body, [keyring.endpoint_secret("acme", ENDPOINT, version, NOW)], [], NOW)
    verify(headers, body, [], keyring.public_keys("acme", NOW), NOW)
    assert (attempt.topic, attempt.key) == (TOPICS.attempts, b"batch_1")


@pytest.mark.parametrize(
    ("tenant", "endpoint", "version"),
    [("acme", "we_fedcba9876543210", 1), ("other", ENDPOINT, 1), ("acme", ENDPOINT, 3)],
)
async def test_no_other_secret_verifies_an_event(
    make: Maker, consumer: Consumer, keyring: Keyring, tenant: str, endpoint: str, version: int
) -> None:
    await make().handle(event_record(consumer.url, "2,1"))
    [(headers, body)] = consumer.requests
    others = [keyring.endpoint_secret(tenant, endpoint, version, NOW), *keyring.secrets("acme", NOW)]
    with pytest.raises(NoMatchingSignature):
        verify(headers, body, others, [], NOW)


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
    again = Record(waiting.topic, 0, 0, waiting.value or b"", waiting.key, waiting.headers, clock.ms)
    await handler.handle(again)
    [(first, body), (second, same)] = consumer.requests
    assert (body, first["webhook-id"]) == (same, second["webhook-id"])


MALFORMED: list[list[Header]] = [
    [(names.WEBHOOK_ENDPOINT, b"we_x/../y")],
    [(names.WEBHOOK_ENDPOINT, b"")],
    [(names.WEBHOOK_ENDPOINT_VERSIONS, b"0")],
    [(names.WEBHOOK_ENDPOINT_VERSIONS, b"1,2,3,4,5,6,7,8,9")],
    [(names.WEBHOOK_ENDPOINT_VERSIONS, None)],
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


_NAMES = st.sampled_from([names.WEBHOOK_ENDPOINT, names.WEBHOOK_ENDPOINT_VERSIONS, names.WEBHOOK_HTTP_HEADER])
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
