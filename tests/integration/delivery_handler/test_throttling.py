"""Origins that ask for fewer requests or for time, and endpoints that are disabled."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from schemas.endpoint import EndpointRecord, EndpointState, key_bytes, write_endpoint
from telemetry.metrics import Metrics
from tests.integration.delivery_handler.records import (
    NOW_MS,
    RESULT,
    TOPICS,
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
from workers.delivery.deliver import DeliveryHandler
from workers.delivery.settings import DeliverySettings
from workers.stage.record import Output


async def test_a_consumer_that_is_gone_is_disabled_and_its_event_kept(make: Maker, consumer: Consumer) -> None:
    consumer.statuses = [410]
    outputs = await make().handle(result_record(consumer.url))
    assert topics_of(outputs) == [TOPICS.attempts, TOPICS.dead_letters, TOPICS.endpoints]
    assert headers_of(outputs[1])["reason"] == "endpoint_gone"
    endpoint = outputs[2]
    assert json.loads(endpoint.key or b"") == ["acme", consumer.url]
    assert json.loads(endpoint.value or b"") == {
        "tenant": "acme",
        "url": consumer.url,
        "state": "disabled",
        "reason": "gone",
        "at": NOW_MS,
        "webhook_id": "msg_1",
    }
    # The compacted topic has only one partition, so the record cannot keep the partition number of its source.
    assert endpoint.partition == 0


PATIENT = DeliverySettings(destination_concurrency=16, breaker_failures=10_000).model_copy(
    update={"destination_wait_seconds": 60.0}
)
"""Settings by which even a slow machine defers no callback and opens no breaker."""


@dataclass
class CountingConsumer:
    """A real HTTP server that holds requests, which a test counts and answers."""

    url: str = ""
    held: deque[asyncio.Future[int]] = field(default_factory=deque)
    opened: bool = False

    async def answer(self, _: web.Request) -> web.Response:
        if self.opened:
            return web.Response()
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.held.append(told)
        return web.Response(status=await told)

    async def holds(self, number: int) -> None:
        """Wait until this many requests are held; fail if there are more, or if there are fewer for 20 s."""
        async with asyncio.timeout(20):
            while len(self.held) < number:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert len(self.held) == number

    def open(self) -> None:
        """Answer all held and all later requests with 200."""
        self.opened = True
        while self.held:
            self.held.popleft().set_result(200)


@pytest.fixture
async def counter() -> AsyncIterator[CountingConsumer]:
    counter = CountingConsumer()
    application = web.Application()
    application.router.add_post("/{path:.*}", counter.answer)
    async with TestServer(application) as server:
        counter.url = str(server.make_url("/hooks"))
        yield counter
        counter.open()


def deliveries(handler: DeliveryHandler, url: str, number: int) -> list[asyncio.Future[Sequence[Output]]]:
    """Start this many callbacks at once."""
    return [asyncio.ensure_future(handler.handle(result_record(url))) for _ in range(number)]


async def ended(running: list[asyncio.Future[Sequence[Output]]]) -> list[object]:
    """The error of each callback's attempt; fails if a callback was deferred."""
    async with asyncio.timeout(20):
        return [attempt_of(outputs)["error"] for outputs in await asyncio.gather(*running)]


@pytest.mark.parametrize(
    ("statuses", "at_once"),
    [([], 16), ([429], 8), ([429, 429], 4), ([502], 8), ([504, 502, 429], 2), ([429] * 6, 1), ([500, 503, 404], 16)],
)
async def test_an_overloaded_origin_gets_half_as_many_callbacks_at_once(
    make: Maker, counter: CountingConsumer, statuses: list[int], at_once: int
) -> None:
    handler = make(PATIENT)
    for status in statuses:
        [one] = deliveries(handler, counter.url, 1)
        await counter.holds(1)
        counter.held.popleft().set_result(status)
        await one
    load = deliveries(handler, counter.url, 40)
    await counter.holds(at_once)
    # Each success allows one more callback at once, up to the settings' maximum.
    for more in range(1, 19 - at_once):
        counter.held.popleft().set_result(200)
        await counter.holds(min(at_once + more, 16))
    counter.open()
    assert await ended(load) == [None] * 40


async def test_a_429_under_load_stops_attempts_until_half_as_many_are_under_way(
    make: Maker, counter: CountingConsumer
) -> None:
    handler = make(PATIENT)
    load = deliveries(handler, counter.url, 60)
    await counter.holds(16)
    # Two 429s leave a limit of four. Each success raises this limit by one, so it is nine after the fifth success.
    answers = [(429, 15), (429, 14)]
    answers += [(200, left) for left in (13, 12, 11, 10, 9, 10, 11, 12, 13, 14, 15, 16, 16, 16)]
    for status, left in answers:
        counter.held.popleft().set_result(status)
        await counter.holds(left)
    counter.open()
    assert sorted(map(str, await ended(load))) == ["None"] * 58 + ["throttled"] * 2


async def test_a_retry_after_defers_all_events_of_its_origin_to_the_fitting_tier_and_one_probe_ends_that(
    make: Maker, consumer: Consumer, clock: JumpingClock, metrics: Metrics
) -> None:
    consumer.statuses, consumer.headers, handler = [429, 200], {"Retry-After": "1800"}, make()
    await handler.handle(result_record(consumer.url))
    [held] = await handler.handle(result_record(f"{consumer.origin}/other", attempt=b"4"))
    assert (held.topic, headers_of(held)["attempt"], headers_of(held)["deferred"]) == (TOPICS.tier(1800), "4", "1")
    assert headers_of(held)["deferred-reason"] == "origin_left_alone"
    clock.ms += 1_700_000
    [again] = await handler.handle(delivered_from(held, 0, NOW_MS))
    assert (again.topic, headers_of(again)["waited"]) == (TOPICS.tier(300), "2100000")
    assert len(consumer.requests) == 1
    clock.ms += 300_000
    assert topics_of(await handler.handle(delivered_from(again, 1, NOW_MS))) == [TOPICS.attempts]
    for state in ("open", "closed"):
        assert metrics.registry.get_sample_value("postback_breaker_changes_total", {"state": state}) == 1


async def test_a_retry_after_of_a_year_holds_its_event_for_a_day_and_others_of_the_origin_for_an_hour(
    make: Maker, consumer: Consumer, clock: JumpingClock
) -> None:
    consumer.statuses, consumer.headers, handler = [503, 200], {"Retry-After": "31536000"}, make()
    assert topics_of(await handler.handle(result_record(consumer.url))) == [TOPICS.attempts, TOPICS.tier(86_400)]
    assert topics_of(await handler.handle(result_record(consumer.url))) == [TOPICS.tier(1800)]
    clock.ms += 3_600_000
    assert topics_of(await handler.handle(result_record(consumer.url))) == [TOPICS.attempts]


async def test_an_event_of_a_disabled_endpoint_is_kept_whole_and_never_sent(
    make: Maker, consumer: Consumer, metrics: Metrics
) -> None:
    handler = make()
    state = EndpointRecord(tenant="acme", url=consumer.url, state=EndpointState.DISABLED, at=NOW_MS)
    handler.states.apply(key_bytes(state.key), write_endpoint(state))
    waiting = result_record(consumer.url, attempt=b"3", deferred=b"2", not_before=str(NOW_MS + 900_000).encode())
    [letter] = await handler.handle(waiting)
    assert (letter.topic, letter.value, letter.key) == (TOPICS.dead_letters, RESULT, b"job_1")
    assert headers_of(letter) == {
        **carried_to(consumer.url),
        "reason": "endpoint_disabled",
        "reason-detail": "callback_url: the endpoint is disabled",
        "attempts": "3",
        "source-topic": TOPICS.results,
        "source-partition": "3",
        "source-offset": "17",
    }
    assert consumer.requests == []
    assert metrics.registry.get_sample_value("postback_dead_letters_total", {"reason": "endpoint_disabled"}) == 1


async def test_a_success_ends_the_failing_state_of_an_endpoint_with_a_tombstone(
    make: Maker, consumer: Consumer
) -> None:
    handler = make()
    state = EndpointRecord(tenant="acme", url=consumer.url, state=EndpointState.FAILING, at=NOW_MS)
    handler.states.apply(key_bytes(state.key), write_endpoint(state))
    _, tombstone = await handler.handle(result_record(consumer.url))
    assert (tombstone.topic, tombstone.key, tombstone.value) == (TOPICS.endpoints, key_bytes(state.key), None)
    assert tombstone.partition == 0
