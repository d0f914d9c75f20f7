"""Waits between attempts, places at a destination, origins that ask for time, and endpoints that are disabled."""

from __future__ import annotations

import asyncio
import json
from collections import deque

import pytest

from schemas.codes import DEAD_LETTER_REASONS
from schemas.endpoint import EndpointRecord, EndpointState, key_bytes, write_endpoint
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
    attempt_of,
    carried_to,
    delivered_from,
    headers_of,
    result_record,
    topics_of,
)
from tests.open_files import no_files_left
from workers.delivery.deliver import DeliveryHandler
from workers.delivery.settings import DeliverySettings
from workers.stage.record import Failure, Output, Record

ONE_AT_A_TIME = DeliverySettings(destination_concurrency=1, destination_queue_records=0)


async def test_retries_of_simultaneous_failures_are_spread_in_each_process_differently(
    make: Maker, consumer: Consumer
) -> None:
    """Without `make.rng`, each handler has a random source of its own, like a real process."""
    consumer.statuses, make.rng, waits = [500], None, []
    for _ in range(2):
        handler = make(DeliverySettings(breaker_failures=10_000))
        outcomes = [await handler.handle(result_record(consumer.url)) for _ in range(5)]
        waits.append([int(headers_of(outputs[1])["not-before"]) - NOW_MS for outputs in outcomes])
    assert len({*waits[0], *waits[1]}) > 5
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

    async def fails(number: int) -> None:
        """Fail at an event of its own: a URL of a single event is never disabled."""
        for output in await handler.handle(result_record(consumer.url, webhook_id=f"msg_{number}".encode())):
            if output.topic == TOPICS.endpoints:
                handler.states.apply(output.key, output.value)

    for number in range(30):
        await fails(number)
        clock.ms += 60_000
        clock.wrong_ms = 7 * 86_400_000 if number in (20, 21, 22) else 0
    assert not handler.states.is_disabled(("acme", consumer.url))
    clock.ms += 6 * 86_400_000
    for number in range(3):
        await fails(number)
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
    handler = make(ONE_AT_A_TIME)
    async with consumer.busy_with(handler):
        due = result_record(consumer.url, attempt=b"1", not_before=str(NOW_MS).encode(), left=b"5000")
        [deferred] = await handler.handle(due)
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


async def test_a_callback_beyond_its_destinations_share_is_deferred_at_once(
    make: Maker, consumer: Consumer, metrics: Metrics
) -> None:
    handler = make(ONE_AT_A_TIME)
    async with consumer.busy_with(handler):
        [deferred] = await handler.handle(result_record(consumer.url, attempt=b"4"))
        [again] = await handler.handle(delivered_from(deferred, 0, NOW_MS))
        assert deferred.topic == again.topic == TOPICS.tier(5)
        assert (headers_of(deferred)["deferred"], headers_of(again)["deferred"]) == ("1", "2")
        assert headers_of(again)["attempt"] == "4"
        assert [value for name, value in again.headers or () if name == "deferred-reason"] == [b"destination_busy"]
        assert len(consumer.requests) == 1
        assert metrics.registry.get_sample_value("postback_deferred_total") == 2


async def test_a_callback_whose_turn_is_minutes_off_waits_longer_once_it_was_deferred_a_few_times(
    make: Maker, consumer: Consumer, clock: JumpingClock
) -> None:
    handler = make(DeliverySettings(destination_concurrency=2, destination_queue_records=0))
    async with consumer.busy_with(handler):
        async with consumer.busy_with(handler):
            # The first record that is turned away starts the estimate of turns.
            await handler.handle(result_record(consumer.url))
            clock.ms += 6_000
        # One callback takes six seconds, so the turn of the fiftieth comes in five minutes.
        async with consumer.busy_with(handler):
            often, seldom = (result_record(consumer.url, deferred=number) for number in (b"3", b"2"))
            crowd = [topics_of(await handler.handle(record)) for record in [often] * 50 + [seldom]]
    assert crowd == [[TOPICS.tier(5)]] * 49 + [[TOPICS.tier(300)], [TOPICS.tier(5)]]


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
    handler = make(ONE_AT_A_TIME)
    async with consumer.busy_with(handler):
        consumer.gate = None
        by_name = consumer.url.replace("127.0.0.1", "localhost")
        for other in (result_record(consumer.url, tenant=b"other"), result_record(by_name)):
            assert topics_of(await handler.handle(other)) == [TOPICS.attempts]


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
    async with consumer.busy_with(handler):
        assert topics_of(await handler.handle(result_record(consumer.url))) == [TOPICS.tier(5)]
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


async def test_a_429_under_load_stops_attempts_until_half_as_many_are_under_way(
    make: Maker, consumer: Consumer
) -> None:
    handler, held = make(PATIENT), deque[asyncio.Future[int]]()
    consumer.held = held

    async def holds(number: int) -> None:
        async with asyncio.timeout(20):
            while len(held) < number:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert len(held) == number

    load = [asyncio.ensure_future(handler.handle(result_record(consumer.url))) for _ in range(60)]
    await holds(16)
    # Two 429s leave a limit of four. Each success raises this limit by one, so it is nine after the fifth success.
    answers = [(429, 15), (429, 14)]
    answers += [(200, left) for left in (13, 12, 11, 10, 9, 10, 11, 12, 13, 14, 15, 16, 16, 16)]
    for status, left in answers:
        held.popleft().set_result(status)
        await holds(left)
    consumer.held = None
    while held:
        held.popleft().set_result(200)
    async with asyncio.timeout(20):
        errors = [str(attempt_of(outputs)["error"]) for outputs in await asyncio.gather(*load)]
    assert sorted(errors) == ["None"] * 58 + ["throttled"] * 2


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


def known(handler: DeliveryHandler, url: str, state: EndpointState) -> EndpointRecord:
    """Let the handler read the endpoint's state, which it returns."""
    record = EndpointRecord(tenant="acme", url=url, state=state, at=NOW_MS)
    handler.states.apply(key_bytes(record.key), write_endpoint(record))
    return record


async def test_an_event_of_a_disabled_endpoint_is_kept_whole_and_never_sent(
    make: Maker, consumer: Consumer, metrics: Metrics
) -> None:
    handler = make()
    known(handler, consumer.url, EndpointState.DISABLED)
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
    state = known(handler, consumer.url, EndpointState.FAILING)
    _, tombstone = await handler.handle(result_record(consumer.url))
    assert (tombstone.topic, tombstone.key, tombstone.value) == (TOPICS.endpoints, key_bytes(state.key), None)
    assert tombstone.partition == 0


@pytest.mark.parametrize("way", ["handled", "given up"])
async def test_a_job_that_starts_later_is_moved_on_even_if_it_is_given_up(
    make: Maker, clock: JumpingClock, way: str
) -> None:
    """Moving a job runs nothing of it, so a job that is suspected of killing delivery is not lost to dead letters."""
    handler = make()

    async def moved(job: Record) -> Output:
        failure = Failure("worker_killed", "it killed its worker", 3)
        [output] = await handler.handle(job) if way == "handled" else handler.give_up(job, failure)
        return output

    headers = [("lane", TOPICS.requests().encode()), ("not-before", str(NOW_MS + 8_000).encode()), ("left", b"8000")]
    clock.ms += 5_000
    waiting = await moved(Record(TOPICS.later[5], 3, 1, b"job", None, headers, NOW_MS))
    assert (waiting.topic, dict(waiting.headers or ())["left"]) == (TOPICS.later[5], b"3000")
    clock.ms += 5_000
    job = await moved(delivered_from(waiting, 2, clock.ms))
    assert (job.topic, job.value, job.headers) == (TOPICS.requests(), b"job", [])
