"""The handler of delivery with a real keyring and real HTTP: what it POSTs, and which records it leaves behind."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from standardwebhooks import Webhook

from schemas.codec import write_result
from schemas.endpoint import EndpointRecord, EndpointState, key_bytes, write_endpoint
from schemas.event import event_body
from schemas.result import Outcome, Result
from schemas.signature import verify
from schemas.topics import TIER_DELAYS_SECONDS, Topics
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.open_files import no_files_left
from workers.delivery.deliver import DeliveryHandler
from workers.delivery.keyring import Keyring
from workers.delivery.post import Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy
from workers.stage.record import Failure, Output, Record

NOW_MS = 1_700_000_000_000
TOPICS = Topics("t.")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
RESULT = write_result(Result(job_id="job_1", outcome=Outcome.SUCCEEDED, text="Paris", created_at=1_700_000_000))


class SetClock:
    """A clock that shows what it is set to."""

    def __init__(self) -> None:
        self.ms = NOW_MS
        self.wrong_ms = 0
        """By how much somebody has set the wall clock since."""

    def time(self) -> float:
        return (self.ms + self.wrong_ms) / 1000

    def monotonic(self) -> float:
        return self.ms / 1000

    def sleep(self, seconds: float) -> None:
        raise AssertionError("delivery never blocks its loop")


@dataclass
class Consumer:
    """A real HTTP server that answers with one status after the other; the last one stays."""

    statuses: list[int] = field(default_factory=lambda: [200])
    headers: dict[str, str] = field(default_factory=dict)
    gate: asyncio.Event | None = None
    """Where set, answers wait for it."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    origin: str = ""

    @property
    def url(self) -> str:
        return f"{self.origin}/hooks/path-token?key=query-token"

    async def answer(self, request: web.Request) -> web.Response:
        self.requests.append(({k.lower(): v for k, v in request.headers.items()}, await request.read()))
        self.arrived.set()
        if self.gate is not None:
            await self.gate.wait()
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return web.Response(status=status, headers=self.headers)


@pytest.fixture
async def consumer() -> AsyncIterator[Consumer]:
    consumer = Consumer()
    application = web.Application()
    application.router.add_post("/{path:.*}", consumer.answer)
    async with TestServer(application) as server:
        consumer.origin = str(server.make_url("/").origin())
        yield consumer
        if consumer.gate is not None:
            consumer.gate.set()


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def keyring(tmp_path: Path, clock: SetClock) -> Keyring:
    return Keyring.create(tmp_path / "keyring.json", clock)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@dataclass
class Maker:
    """Makes handlers that share a keyring, a clock and metrics, and closes them."""

    keyring: Keyring
    clock: SetClock
    metrics: Metrics
    rng: random.Random | None = field(default_factory=lambda: random.Random(1))
    made: list[DeliveryHandler] = field(default_factory=list)

    def __call__(
        self, settings: DeliverySettings | None = None, allow: tuple[str, ...] = ("127.0.0.0/8",)
    ) -> DeliveryHandler:
        settings = settings or DeliverySettings()
        policy = EgressPolicy(allow=tuple(map(ip_network, allow)), development=True)
        poster = Poster(settings, policy, self.clock)
        handler = DeliveryHandler(TOPICS, self.keyring, poster, self.clock, self.metrics, settings, rng=self.rng)
        self.made.append(handler)
        return handler


@pytest.fixture
async def make(keyring: Keyring, clock: SetClock, metrics: Metrics) -> AsyncIterator[Maker]:
    maker = Maker(keyring, clock, metrics)
    yield maker
    for handler in maker.made:
        await handler.close()


def carried_to(url: str) -> dict[str, str]:
    """The headers of a result that is to be called back there, all of which go with it wherever it waits."""
    return {
        "tenant": "acme",
        "webhook-id": "msg_1",
        "job-id": "job_1",
        "callback-url": url,
        "traceparent": TRACEPARENT,
        "x-own": "kept",
    }


def result_record(url: str | None, value: bytes = RESULT, **changed: bytes | None) -> Record:
    headers: dict[str, bytes | None] = {name: value.encode() for name, value in carried_to(url or "").items()}
    headers |= {"callback-url": None} if url is None else {}
    headers |= {name.replace("_", "-"): header for name, header in changed.items()}
    present = [(name, header) for name, header in headers.items() if header is not None]
    return Record(TOPICS.results, 3, 17, value, b"job_1", present, NOW_MS)


def delivered_from(output: Output, offset: int, at_ms: int) -> Record:
    """What was written, as the stage reads it again."""
    return Record(output.topic, 3, offset, output.value or b"", output.key, output.headers, at_ms)


def headers_of(output: Output) -> dict[str, str]:
    return {name: value.decode() for name, value in output.headers or ()}


def topics_of(outputs: Sequence[Output]) -> list[str]:
    return [output.topic for output in outputs]


def attempt_of(outputs: Sequence[Output]) -> dict[str, object]:
    [attempt] = [output for output in outputs if output.topic == TOPICS.attempts]
    assert attempt.key == b"job_1"
    said: dict[str, object] = json.loads(attempt.value or b"")
    return said


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
    make: Maker, consumer: Consumer, keyring: Keyring, clock: SetClock
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
    # That library compares the timestamp with the machine's clock.
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


async def test_what_failed_in_one_moment_is_spread_over_a_tenth_of_the_wait_in_each_process_otherwise(
    make: Maker, consumer: Consumer
) -> None:
    """With the random source that processes have."""
    consumer.statuses, make.rng, waits = [500], None, []
    for _ in range(2):
        handler = make(DeliverySettings(breaker_failures=10_000))
        # Of five tenants, so that no breaker finds that too many of one failed.
        records = [result_record(consumer.url, tenant=f"tenant{number % 5}".encode()) for number in range(200)]
        outcomes = await asyncio.gather(*(handler.handle(record) for record in records))
        waiting = [output for outputs in outcomes for output in outputs if output.topic == TOPICS.tier(5)]
        waits.append(sorted(int(headers_of(output)["not-before"]) - NOW_MS for output in waiting))
    for process in waits:
        assert len(process) == 200
        assert 5_000 <= min(process) <= max(process) <= 5_500
        # That one of ten parts gets none of 200 happens once in 140 million times.
        assert {min(9, (wait - 5_000) // 50) for wait in process} == set(range(10))
    assert waits[0] != waits[1]


async def test_a_repeat_has_the_same_id_and_body_and_a_fresh_timestamp(
    make: Maker, consumer: Consumer, clock: SetClock, keyring: Keyring
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


async def test_a_consumer_that_never_answers_2xx_gets_ten_attempts_and_then_a_dead_letter(
    make: Maker, consumer: Consumer, clock: SetClock, metrics: Metrics
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


async def test_a_clock_that_is_set_days_ahead_disables_no_endpoint(
    make: Maker, consumer: Consumer, clock: SetClock
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


async def test_what_the_age_counts_begins_with_the_result_whatever_waits_and_hops_lie_between(
    make: Maker, consumer: Consumer, clock: SetClock, metrics: Metrics
) -> None:
    consumer.statuses, handler = [503, 503, 429, 503, 200], make()
    consumer.headers = {"Retry-After": "70"}
    record = result_record(consumer.url)
    while len(consumer.requests) < 5:
        clock.ms += 60_000  # nobody had time for it
        [*_, left] = await handler.handle(record)
        record = delivered_from(left, record.offset + 1, clock.ms)
        clock.ms = handler.due_ms(record) or clock.ms
    value = metrics.registry.get_sample_value
    assert value("postback_callback_age_seconds_count") == 1
    assert value("postback_callback_age_seconds_sum") == (clock.ms - NOW_MS) / 1000


async def test_a_throttled_callback_waits_as_long_as_it_was_told(
    make: Maker, consumer: Consumer, clock: SetClock
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
async def test_a_clock_that_is_set_back_at_most_doubles_a_wait_and_a_minute(
    make: Maker, consumer: Consumer, clock: SetClock, back_hours: int, retry_after: str | None
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
    make: Maker, consumer: Consumer, clock: SetClock
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


async def test_a_refused_callback_is_a_dead_letter_that_names_the_field(make: Maker, consumer: Consumer) -> None:
    outputs = await make(allow=()).handle(result_record(consumer.url))
    assert topics_of(outputs) == [TOPICS.attempts, TOPICS.dead_letters]
    assert (attempt_of(outputs)["status"], attempt_of(outputs)["error"]) == (None, "refused")
    assert headers_of(outputs[1])["reason"] == "callback_refused"
    assert headers_of(outputs[1])["reason-detail"] == "callback_url: the address is not public"
    assert consumer.requests == []


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
    # The compacted topic has one partition only, so the source's number would not do.
    assert endpoint.partition == 0


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
    assert detail.encode() in headers_of_bytes(letter)["reason-detail"]


def headers_of_bytes(output: Output) -> dict[str, bytes]:
    return dict(output.headers or ())


async def test_an_invalid_traceparent_is_left_out(make: Maker, consumer: Consumer) -> None:
    await make().handle(result_record(consumer.url, traceparent=b"00-x\r\ny"))
    assert "traceparent" not in consumer.requests[0][0]


async def test_what_the_stage_gives_up_is_a_dead_letter(make: Maker) -> None:
    record = result_record("http://h.example/", attempt=b"2")
    [letter] = make().give_up(record, Failure("worker_killed", "it died three times", 3))
    assert letter.topic == TOPICS.dead_letters
    said = headers_of(letter)
    assert (said["reason"], said["reason-detail"], said["attempts"]) == ("worker_killed", "it died three times", "3")


ONE_AT_A_TIME = DeliverySettings(destination_concurrency=1, destination_queue_records=0)


async def test_a_callback_beyond_its_destinations_share_is_deferred_at_once(
    make: Maker, consumer: Consumer, metrics: Metrics
) -> None:
    handler, consumer.gate = make(ONE_AT_A_TIME), asyncio.Event()
    first = asyncio.ensure_future(handler.handle(result_record(consumer.url)))
    await consumer.arrived.wait()
    [deferred] = await handler.handle(result_record(consumer.url, attempt=b"4"))
    [again] = await handler.handle(delivered_from(deferred, 0, NOW_MS))
    assert deferred.topic == again.topic == TOPICS.tier(5)
    assert (headers_of(deferred)["deferred"], headers_of(again)["deferred"]) == ("1", "2")
    assert headers_of(again)["attempt"] == "4"
    assert len(consumer.requests) == 1
    assert metrics.registry.get_sample_value("postback_deferred_total") == 2
    consumer.gate.set()
    assert topics_of(await first) == [TOPICS.attempts]


async def test_a_callback_whose_turn_is_minutes_off_waits_longer_once_it_was_deferred_a_few_times(
    make: Maker, consumer: Consumer, clock: SetClock
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
    await handler.handle(result_record(consumer.url))  # from here on there is a crowd
    clock.ms += 6_000
    gates[0].set()
    await running[0]  # so one takes six seconds, and the turn of the fiftieth comes in five minutes
    await begin(gates[2])
    often, seldom = (result_record(consumer.url, deferred=number) for number in (b"3", b"2"))
    crowd = [await handler.handle(record) for record in [often] * 50 + [seldom]]
    assert [topics_of(outputs) for outputs in crowd] == [[TOPICS.tier(5)]] * 49 + [[TOPICS.tier(300)], [TOPICS.tier(5)]]
    for gate in gates:
        gate.set()
    await asyncio.gather(*running)


async def test_without_open_files_callbacks_are_deferred_unjudged_and_it_is_said_once_a_minute(
    make: Maker, consumer: Consumer, clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    handler = make(DeliverySettings(breaker_failures=1))
    await handler.handle(result_record(consumer.url.replace("127.0.0.1", "127.0.0.2")))  # loads what it needs
    with no_files_left():
        for said in (1, 1, 2):
            [deferred] = await handler.handle(result_record(consumer.url, attempt=b"4"))
            assert (deferred.topic, headers_of(deferred)["attempt"]) == (TOPICS.tier(5), "4")
            assert sum("open no more connections" in record.getMessage() for record in caplog.records) == said
            clock.ms += 31_000
    assert consumer.requests == []
    assert topics_of(await handler.handle(result_record(consumer.url))) == [TOPICS.attempts]


async def test_a_full_destination_holds_up_neither_other_origins_nor_other_tenants(
    make: Maker, consumer: Consumer
) -> None:
    handler, consumer.gate = make(ONE_AT_A_TIME), asyncio.Event()
    hung = [asyncio.ensure_future(handler.handle(result_record(consumer.url)))]
    await consumer.arrived.wait()
    by_name = consumer.url.replace("127.0.0.1", "localhost")
    consumer.gate, gate = None, consumer.gate
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
    assert len(handler._destinations) == 0


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
    # The place that it gave up waiting for is not lost.
    assert topics_of(await handler.handle(result_record(consumer.url))) == [TOPICS.attempts]
    assert len(handler._destinations) == 0


async def test_places_at_a_destination_survive_cancelled_records(make: Maker, consumer: Consumer) -> None:
    handler = make(DeliverySettings(destination_concurrency=1, destination_queue_records=5, destination_wait_seconds=4))
    consumer.gate = asyncio.Event()
    tasks = [asyncio.ensure_future(handler.handle(result_record(consumer.url))) for _ in range(3)]
    await consumer.arrived.wait()
    # The one that runs hands its place to one that is cancelled in the same moment; the third must get it.
    tasks[0].cancel()
    await asyncio.sleep(0)
    tasks[1].cancel()
    consumer.gate.set()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in ended] == [True, True, False]
    assert len(handler._destinations) == 0


PATIENT = DeliverySettings(destination_concurrency=16, breaker_failures=10_000).model_copy(
    update={"destination_wait_seconds": 60.0}
)
"""Nobody is deferred while the machine is slow, and no breaker opens."""


@dataclass
class CountingConsumer:
    """A real HTTP server that holds each request until it is told what to answer, so that they can be counted."""

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
        """Return once there are so many requests at a time; fail where there are more, or never so many."""
        async with asyncio.timeout(20):
            while len(self.held) < number:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert len(self.held) == number

    def open(self) -> None:
        """Answer whatever is there and whatever comes with 200."""
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
    """So many callbacks at once."""
    return [asyncio.ensure_future(handler.handle(result_record(url))) for _ in range(number)]


async def ended(running: list[asyncio.Future[Sequence[Output]]]) -> list[str | None]:
    """What each came to, as the error of its attempt; none is lost and none was deferred."""
    async with asyncio.timeout(20):
        return [attempt_of(outputs)["error"] for outputs in await asyncio.gather(*running)]


@pytest.mark.parametrize(
    ("statuses", "at_once"),
    [([], 16), ([429], 8), ([429, 429], 4), ([502], 8), ([504, 502, 429], 2), ([429] * 6, 1), ([500, 503, 404], 16)],
)
async def test_an_origin_that_says_it_is_too_much_sees_half_as_many_callbacks_at_once(
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
    # Each that it takes is one more at once, until they are as many as the settings allow.
    for more in range(1, 19 - at_once):
        counter.held.popleft().set_result(200)
        await counter.holds(min(at_once + more, 16))
    counter.open()
    assert await ended(load) == [None] * 40


async def test_a_429_under_load_lets_nobody_in_until_half_as_many_are_left(
    make: Maker, counter: CountingConsumer
) -> None:
    handler = make(PATIENT)
    load = deliveries(handler, counter.url, 60)
    await counter.holds(16)
    # Four are allowed then, and one more for each that is taken: with the fifth, nine.
    answers = [(429, 15), (429, 14)]
    answers += [(200, left) for left in (13, 12, 11, 10, 9, 10, 11, 12, 13, 14, 15, 16, 16, 16)]
    for status, left in answers:
        counter.held.popleft().set_result(status)
        await counter.holds(left)
    counter.open()
    assert sorted(map(str, await ended(load))) == ["None"] * 58 + ["throttled"] * 2


async def test_a_retry_after_holds_all_of_its_origin_in_the_tier_that_fits_and_one_probe_ends_it(
    make: Maker, consumer: Consumer, clock: SetClock, metrics: Metrics
) -> None:
    consumer.statuses, consumer.headers, handler = [429, 200], {"Retry-After": "1800"}, make()
    await handler.handle(result_record(consumer.url))
    [held] = await handler.handle(result_record(f"{consumer.origin}/other", attempt=b"4"))
    assert (held.topic, headers_of(held)["attempt"], headers_of(held)["deferred"]) == (TOPICS.tier(1800), "4", "1")
    clock.ms += 1_700_000
    [again] = await handler.handle(delivered_from(held, 0, NOW_MS))
    assert (again.topic, headers_of(again)["waited"]) == (TOPICS.tier(300), "2100000")
    assert len(consumer.requests) == 1
    clock.ms += 300_000
    assert topics_of(await handler.handle(delivered_from(again, 1, NOW_MS))) == [TOPICS.attempts]
    for state in ("open", "closed"):
        assert metrics.registry.get_sample_value("postback_breaker_changes_total", {"state": state}) == 1


async def test_a_retry_after_of_a_year_holds_its_event_for_a_day_and_others_of_the_origin_for_an_hour(
    make: Maker, consumer: Consumer, clock: SetClock
) -> None:
    consumer.statuses, consumer.headers, handler = [503, 200], {"Retry-After": "31536000"}, make()
    assert topics_of(await handler.handle(result_record(consumer.url))) == [TOPICS.attempts, TOPICS.tier(86_400)]
    assert topics_of(await handler.handle(result_record(consumer.url))) == [TOPICS.tier(1800)]
    clock.ms += 3_600_000
    assert topics_of(await handler.handle(result_record(consumer.url))) == [TOPICS.attempts]


LONG_AGO = b"900000000"
"""Milliseconds, more than ten days."""


async def test_an_event_that_has_waited_for_long_is_given_up_untried_only_where_probe_after_probe_fails(
    make: Maker, consumer: Consumer, clock: SetClock
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
    detail = "it has waited for 10.4 days, and its origin fails whenever it is tried"
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


async def test_a_success_takes_back_that_the_endpoint_fails_with_a_tombstone(make: Maker, consumer: Consumer) -> None:
    handler = make()
    state = EndpointRecord(tenant="acme", url=consumer.url, state=EndpointState.FAILING, at=NOW_MS)
    handler.states.apply(key_bytes(state.key), write_endpoint(state))
    _, tombstone = await handler.handle(result_record(consumer.url))
    assert (tombstone.topic, tombstone.key, tombstone.value) == (TOPICS.endpoints, key_bytes(state.key), None)
    assert tombstone.partition == 0


async def test_a_rotated_key_signs_without_a_restart(
    make: Maker, consumer: Consumer, keyring: Keyring, clock: SetClock
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
