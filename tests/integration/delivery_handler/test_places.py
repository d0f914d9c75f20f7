"""Places at a destination: if all are taken, further callbacks wait in turn or are deferred."""

from __future__ import annotations

import asyncio

import pytest

from telemetry.metrics import Metrics
from tests.integration.delivery_handler.records import (
    NOW_MS,
    TOPICS,
    Consumer,
    JumpingClock,
    Maker,
    delivered_from,
    headers_of,
    result_record,
    topics_of,
)
from tests.open_files import no_files_left
from workers.delivery.settings import DeliverySettings

ONE_AT_A_TIME = DeliverySettings(destination_concurrency=1, destination_queue_records=0)


async def test_a_callback_beyond_its_destinations_share_is_deferred_at_once(
    make: Maker, consumer: Consumer, metrics: Metrics
) -> None:
    handler, gate = make(ONE_AT_A_TIME), asyncio.Event()
    consumer.gate = gate
    first = asyncio.ensure_future(handler.handle(result_record(consumer.url)))
    await consumer.arrived.wait()
    [deferred] = await handler.handle(result_record(consumer.url, attempt=b"4"))
    [again] = await handler.handle(delivered_from(deferred, 0, NOW_MS))
    assert deferred.topic == again.topic == TOPICS.tier(5)
    assert (headers_of(deferred)["deferred"], headers_of(again)["deferred"]) == ("1", "2")
    assert headers_of(again)["attempt"] == "4"
    assert [value for name, value in again.headers or () if name == "deferred-reason"] == [b"destination_busy"]
    assert len(consumer.requests) == 1
    assert metrics.registry.get_sample_value("postback_deferred_total") == 2
    consumer.gate.set()
    assert topics_of(await first) == [TOPICS.attempts]


async def test_a_callback_whose_turn_is_minutes_off_waits_longer_once_it_was_deferred_a_few_times(
    make: Maker, consumer: Consumer, clock: JumpingClock
) -> None:
    handler = make(DeliverySettings(destination_concurrency=2, destination_queue_records=0))
    gates, running = [asyncio.Event() for _ in range(3)], []

    async def begin(gate: asyncio.Event) -> None:
        consumer.gate = gate
        consumer.arrived.clear()
        running.append(asyncio.ensure_future(handler.handle(result_record(consumer.url))))
        await consumer.arrived.wait()

    await begin(gates[0])
    await begin(gates[1])
    # The first record that is turned away starts the estimate of turns.
    await handler.handle(result_record(consumer.url))
    clock.ms += 6_000
    gates[0].set()
    await running[0]  # one callback takes six seconds, so the turn of the fiftieth comes in five minutes
    await begin(gates[2])
    often, seldom = (result_record(consumer.url, deferred=number) for number in (b"3", b"2"))
    crowd = [await handler.handle(record) for record in [often] * 50 + [seldom]]
    assert [topics_of(outputs) for outputs in crowd] == [[TOPICS.tier(5)]] * 49 + [[TOPICS.tier(300)], [TOPICS.tier(5)]]
    for gate in gates:
        gate.set()
    await asyncio.gather(*running)


async def test_without_free_file_descriptors_callbacks_are_deferred_untried_and_the_log_says_so_once_a_minute(
    make: Maker, consumer: Consumer, clock: JumpingClock, caplog: pytest.LogCaptureFixture
) -> None:
    handler = make(DeliverySettings(breaker_failures=1))
    # Handle one record first, because this imports modules, and later no file can be opened.
    await handler.handle(result_record(consumer.url.replace("127.0.0.1", "127.0.0.2")))
    with no_files_left():
        for said in (1, 1, 2):
            [deferred] = await handler.handle(result_record(consumer.url, attempt=b"4"))
            assert (deferred.topic, headers_of(deferred)["attempt"]) == (TOPICS.tier(5), "4")
            assert headers_of(deferred)["deferred-reason"] == "resources_exhausted"
            assert sum("open no more connections" in record.getMessage() for record in caplog.records) == said
            clock.ms += 31_000
    assert consumer.requests == []
    assert topics_of(await handler.handle(result_record(consumer.url))) == [TOPICS.attempts]


async def test_a_full_destination_holds_up_neither_other_origins_nor_other_tenants(
    make: Maker, consumer: Consumer
) -> None:
    handler, gate = make(ONE_AT_A_TIME), asyncio.Event()
    consumer.gate = gate
    hung = [asyncio.ensure_future(handler.handle(result_record(consumer.url)))]
    await consumer.arrived.wait()
    by_name = consumer.url.replace("127.0.0.1", "localhost")
    consumer.gate = None
    outputs = await handler.handle(result_record(consumer.url, tenant=b"other"))
    assert topics_of(outputs) == [TOPICS.attempts]
    assert topics_of(await handler.handle(result_record(by_name))) == [TOPICS.attempts]
    gate.set()
    await asyncio.gather(*hung)


async def test_records_of_a_full_destination_wait_briefly_in_turn(make: Maker, consumer: Consumer) -> None:
    handler = make(DeliverySettings(destination_concurrency=1, destination_queue_records=5, destination_wait_seconds=4))
    records = [result_record(consumer.url, webhook_id=f"msg_{number}".encode()) for number in range(6)]
    outcomes = await asyncio.gather(*(handler.handle(record) for record in records))
    assert [topics_of(outputs) for outputs in outcomes] == [[TOPICS.attempts]] * 6
    assert [headers["webhook-id"] for headers, _ in consumer.requests] == [f"msg_{number}" for number in range(6)]
    assert len(handler.destinations) == 0


async def test_a_record_that_waited_too_long_for_its_destination_is_deferred(make: Maker, consumer: Consumer) -> None:
    handler = make(
        DeliverySettings(destination_concurrency=1, destination_queue_records=5, destination_wait_seconds=0.05)
    )
    consumer.gate = asyncio.Event()
    first = asyncio.ensure_future(handler.handle(result_record(consumer.url)))
    await consumer.arrived.wait()
    assert topics_of(await handler.handle(result_record(consumer.url))) == [TOPICS.tier(5)]
    consumer.gate.set()
    await first
    # The place goes to the next record, although the deferred one had waited for it.
    assert topics_of(await handler.handle(result_record(consumer.url))) == [TOPICS.attempts]
    assert len(handler.destinations) == 0


async def test_cancelled_records_give_their_places_at_a_destination_to_others(make: Maker, consumer: Consumer) -> None:
    handler = make(DeliverySettings(destination_concurrency=1, destination_queue_records=5, destination_wait_seconds=4))
    consumer.gate = asyncio.Event()
    tasks = [asyncio.ensure_future(handler.handle(result_record(consumer.url))) for _ in range(3)]
    await consumer.arrived.wait()
    # The first callback hands its place to the second, which is cancelled at once. So the third must get the place.
    tasks[0].cancel()
    await asyncio.sleep(0)
    tasks[1].cancel()
    consumer.gate.set()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in ended] == [True, True, False]
    assert len(handler.destinations) == 0
