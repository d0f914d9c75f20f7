"""Waits between a callback's attempts, under clocks that are wrong, and the end of its schedule."""

from __future__ import annotations

import asyncio

import pytest

from schemas.codes import DEAD_LETTER_REASONS
from schemas.event import event_body
from schemas.topics import TIER_DELAYS_SECONDS
from telemetry.metrics import Metrics
from tests.integration.delivery_handler.records import (
    NOW_MS,
    RESULT,
    TOPICS,
    Consumer,
    JumpingClock,
    Maker,
    carried_to,
    delivered_from,
    headers_of,
    result_record,
)
from workers.delivery.settings import DeliverySettings


async def test_retries_of_simultaneous_failures_are_spread_over_a_tenth_of_the_wait_in_each_process_differently(
    make: Maker, consumer: Consumer
) -> None:
    """Without `make.rng`, each handler has a random source of its own, like a real process."""
    consumer.statuses, make.rng, waits = [500], None, []
    for _ in range(2):
        handler = make(DeliverySettings(breaker_failures=10_000))
        # Five tenants share the records, so that no tenant has enough failures to open a breaker.
        records = [result_record(consumer.url, tenant=f"tenant{number % 5}".encode()) for number in range(200)]
        outcomes = await asyncio.gather(*(handler.handle(record) for record in records))
        waiting = [output for outputs in outcomes for output in outputs if output.topic == TOPICS.tier(5)]
        waits.append(sorted(int(headers_of(output)["not-before"]) - NOW_MS for output in waiting))
    for process in waits:
        assert len(process) == 200
        assert 5_000 <= min(process) <= max(process) <= 5_500
        # The probability that 200 random waits leave one of the ten parts empty is 1 in 140 million.
        assert {min(9, (wait - 5_000) // 50) for wait in process} == set(range(10))
    assert waits[0] != waits[1]


async def test_a_consumer_that_never_answers_2xx_gets_ten_attempts_and_then_a_dead_letter(
    make: Maker, consumer: Consumer, clock: JumpingClock, metrics: Metrics
) -> None:
    consumer.statuses, handler = [503], make()
    record, visited, hops = result_record(consumer.url), [], 0
    while True:
        posts = len(consumer.requests)
        *attempts, left = [one for one in await handler.handle(record) if one.topic != TOPICS.endpoints]
        hops += len(consumer.requests) == posts
        assert len(attempts) == len(consumer.requests) - posts
        visited += [left.topic] if attempts else []
        if left.topic == TOPICS.dead_letters:
            break
        record = delivered_from(left, record.offset + 1, clock.ms)
        clock.ms = handler.due_ms(record) or 0
    assert visited == [*(TOPICS.tier(delay) for delay in TIER_DELAYS_SECONDS), TOPICS.dead_letters]
    assert len(consumer.requests) == 10
    assert {(headers["webhook-id"], body) for headers, body in consumer.requests} == {
        ("msg_1", event_body(RESULT, "msg_1", "acme"))
    }
    assert sum(TIER_DELAYS_SECONDS) * 1000 <= clock.ms - NOW_MS <= sum(TIER_DELAYS_SECONDS) * 1100 + 60_000
    assert 0 < hops < 100
    assert headers_of(left) == {
        **carried_to(consumer.url),
        "reason": "callback_exhausted",
        "reason-detail": "the last attempt: server_error (status 503)",
        "attempts": "10",
        "source-topic": record.topic,
        "source-partition": "3",
        "source-offset": str(record.offset),
    }
    assert left.value == RESULT
    assert metrics.registry.get_sample_value("postback_dead_letters_total", {"reason": "callback_exhausted"}) == 1


async def test_the_count_of_each_reason_begins_with_0(make: Maker, metrics: Metrics) -> None:
    make()
    [metric] = metrics.dead_letters.collect()
    assert {(each.labels["reason"], each.value) for each in metric.samples if each.name.endswith("_total")} == {
        (reason, 0) for reason in DEAD_LETTER_REASONS
    }


async def test_a_clock_that_is_set_days_ahead_disables_no_endpoint(
    make: Maker, consumer: Consumer, clock: JumpingClock
) -> None:
    consumer.statuses, handler = [503], make()
    for number in range(30):
        record = result_record(consumer.url, webhook_id=f"msg_{number}".encode())
        for output in await handler.handle(record):
            if output.topic == TOPICS.endpoints:
                handler.states.apply(output.key, output.value)
        clock.ms += 60_000
        clock.wrong_ms = 7 * 86_400_000 if number in (20, 21, 22) else 0
    assert not handler.states.is_disabled(("acme", consumer.url))
    clock.ms += 6 * 86_400_000
    for number in range(3):
        record = result_record(consumer.url, webhook_id=f"msg_{number}".encode())
        for output in await handler.handle(record):
            if output.topic == TOPICS.endpoints:
                handler.states.apply(output.key, output.value)
    assert handler.states.is_disabled(("acme", consumer.url))


async def test_the_age_counts_from_the_result_whatever_waits_and_hops_lie_between(
    make: Maker, consumer: Consumer, clock: JumpingClock, metrics: Metrics
) -> None:
    consumer.statuses, handler = [503, 503, 429, 503, 200], make()
    consumer.headers = {"Retry-After": "70"}
    record = result_record(consumer.url)
    while len(consumer.requests) < 5:
        clock.ms += 60_000  # the process is busy, and comes to the record a minute late
        [*_, left] = await handler.handle(record)
        record = delivered_from(left, record.offset + 1, clock.ms)
        clock.ms = handler.due_ms(record) or clock.ms
    value = metrics.registry.get_sample_value
    assert value("postback_callback_age_seconds_count") == 1
    assert value("postback_callback_age_seconds_sum") == (clock.ms - NOW_MS) / 1000


async def test_a_throttled_callback_waits_as_long_as_its_retry_after_asks(
    make: Maker, consumer: Consumer, clock: JumpingClock
) -> None:
    consumer.statuses, consumer.headers, handler = [429], {"Retry-After": "60"}, make()
    _, waiting = await handler.handle(result_record(consumer.url))
    record = delivered_from(waiting, 0, NOW_MS)
    while len(consumer.requests) == 1:
        clock.ms = handler.due_ms(record) or 0
        record = delivered_from((await handler.handle(record))[-1], record.offset + 1, clock.ms)
    assert 60_000 <= clock.ms - NOW_MS <= 66_000


@pytest.mark.parametrize("back_hours", [1, 6, 23, 25, 26, 24 * 365])
@pytest.mark.parametrize("retry_after", [None, "60", "7000"])
async def test_a_clock_that_is_set_back_at_most_doubles_a_wait_and_adds_a_minute(
    make: Maker, consumer: Consumer, clock: JumpingClock, back_hours: int, retry_after: str | None
) -> None:
    consumer.statuses, consumer.headers = [429], {} if retry_after is None else {"Retry-After": retry_after}
    before, behind = make(), make()
    _, waiting = await before.handle(result_record(consumer.url))
    record, appended_ms = delivered_from(waiting, 0, NOW_MS), NOW_MS
    clock.wrong_ms = -3_600_000 * back_hours
    while len(consumer.requests) == 1:
        clock.ms = appended_ms = appended_ms + before.tier_ms(record)
        [*_, waiting] = await behind.handle(record)
        record = delivered_from(waiting, record.offset + 1, appended_ms)
    wanted_ms = 1000 * int(retry_after or 5)
    assert wanted_ms <= clock.ms - NOW_MS <= 2 * wanted_ms * 1.13 + 65_000


async def test_a_deferred_record_is_due_when_it_comes_back_whatever_the_clock_says(
    make: Maker, consumer: Consumer, clock: JumpingClock
) -> None:
    handler = make(DeliverySettings(destination_concurrency=1, destination_queue_records=0))
    consumer.gate = asyncio.Event()
    first = asyncio.create_task(handler.handle(result_record(consumer.url)))
    await consumer.arrived.wait()
    due = result_record(consumer.url, attempt=b"1", not_before=str(NOW_MS).encode(), left=b"5000")
    [deferred] = await handler.handle(due)
    consumer.gate.set()
    await first
    clock.wrong_ms = -3_600_000
    await handler.handle(delivered_from(deferred, 0, NOW_MS))
    assert len(consumer.requests) == 2


async def test_an_early_record_hops_without_an_attempt_and_keeps_its_headers(
    make: Maker, consumer: Consumer, metrics: Metrics
) -> None:
    record = result_record(consumer.url, attempt=b"3", not_before=str(NOW_MS + 400_000).encode(), deferred=b"2")
    [hopped] = await make().handle(record)
    now = str(NOW_MS).encode()
    waits = [("left", b"400000"), ("written", now), ("result-at", now)]
    assert (hopped.topic, hopped.headers) == (TOPICS.tier(300), [*(record.headers or ()), *waits])
    assert consumer.requests == []
    assert metrics.registry.get_sample_value("postback_job_seconds_count", {"phase": "deliver"}) == 0


LONG_AGO = b"900000000"
"""A wait of more than ten days, in milliseconds."""


async def test_an_event_that_has_waited_for_long_is_given_up_untried_only_where_probe_after_probe_fails(
    make: Maker, consumer: Consumer, clock: JumpingClock
) -> None:
    consumer.statuses = [500]
    handler = make(DeliverySettings(breaker_failures=1, breaker_open_seconds=10, breaker_longest_seconds=20))
    await handler.handle(result_record(consumer.url))
    [output] = await handler.handle(result_record(f"{consumer.origin}/other", waited=LONG_AGO))
    assert output.topic != TOPICS.dead_letters
    clock.ms += 10_000
    await handler.handle(result_record(consumer.url))
    [letter] = await handler.handle(result_record(f"{consumer.origin}/other", waited=LONG_AGO, attempt=b"2"))
    assert (letter.topic, headers_of(letter)["reason"]) == (TOPICS.dead_letters, "callback_exhausted")
    detail = "the callback has waited for 10.4 days, and its origin fails at each try"
    assert headers_of(letter)["reason-detail"] == detail
    assert headers_of(letter)["attempts"] == "2"
    assert len(consumer.requests) == 2


async def test_an_event_that_has_waited_for_long_is_not_given_up_since_its_origin_asks_for_time(
    make: Maker, consumer: Consumer
) -> None:
    handler = make(DeliverySettings(breaker_failures=1, breaker_open_seconds=10, breaker_longest_seconds=10))
    consumer.statuses, consumer.headers = [429], {"Retry-After": "3600"}
    await handler.handle(result_record(consumer.url))
    [deferred] = await handler.handle(result_record(f"{consumer.origin}/other", waited=LONG_AGO))
    assert deferred.topic in TOPICS.tiers.values()
