"""Delivery on a real broker: results go in, callbacks go out, and failed ones wait in the tiers.

Its partitions may move, and an origin may have a rate limit.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import TestServer
from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import Message, Producer, TopicPartition

from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from schemas.signature import verify
from telemetry.clock import Deadline, SystemClock
from telemetry.metrics import Metrics
from tests.fleet_here import FleetHere
from tests.messages import headers_of, key_of, put_results, value_of
from tests.product import PARTITIONS, Callbacks, Role, eventually
from workers.delivery.deliver import DeliveryHandler
from workers.delivery.keyring import Keyring
from workers.delivery.post import Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy
from workers.roles.delivery import stages_of

pytestmark = pytest.mark.broker

CLOCK = SystemClock()


@dataclass
class Site:
    """A consumer of webhooks: `/ok` accepts all, `/flaky` an event's third attempt, `/down` none; `/gone` answers 410.

    `/moved` redirects to `/ok`, and `/late` is behind a gateway that times out on the first attempt.
    """

    origin: str = ""
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.got.append((request.path, headers, await request.read()))
        tries = sum(1 for _, earlier, _ in self.got if earlier["webhook-id"] == headers["webhook-id"])
        status = {"/ok": 204, "/down": 503, "/gone": 410, "/moved": 302}
        status |= {"/flaky": 200 if tries == 3 else 500, "/late": 200 if tries == 2 else 504}
        location = {"Location": "/ok"} if request.path == "/moved" else {}
        return web.Response(status=status[request.path], headers=location)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    application = web.Application()
    application.router.add_post("/{path}", site.answer)
    async with TestServer(application) as server:
        site.origin = str(server.make_url("/").origin())
        yield site


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring.create(tmp_path / "keyring.json", CLOCK)


class Unforeseen(AbstractResolver):
    """A resolver that raises an unexpected error, except for names that begin with `fine`, which lead to loopback."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if not host.startswith("fine"):
            raise UnicodeError("label too long")
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        """Close nothing."""


@pytest.fixture
async def delivery(fleet: KafkaSettings, keyring: Keyring) -> AsyncIterator[Metrics]:
    """The running stages of a delivery process."""
    # Good and bad paths have the same origin here, and so the same breaker, which must never open.
    settings, metrics = DeliverySettings(breaker_failures=10_000, breaker_failure_share=1.0), Metrics()
    policy = EgressPolicy(allow=(ip_network("127.0.0.1/32"),), development=True)
    poster = Poster(settings, policy, CLOCK, resolver=Unforeseen())
    handler = DeliveryHandler(fleet.topics, keyring, poster, CLOCK, metrics, settings)
    stages = stages_of(handler, settings, fleet, "r1", CLOCK, metrics)
    running = [asyncio.ensure_future(stage.run()) for stage in stages]
    yield metrics
    for stage in stages:
        stage.stop()
    await asyncio.gather(*running)
    await handler.close()


def read_all(fleet: KafkaSettings, topic: str, wanted: int) -> list[Message]:
    """At least `wanted` committed records of a topic. Fails after 60 s."""
    consumer = KafkaConsumer({**fleet.client_config(), "group.id": "unused", "isolation.level": "read_committed"})
    try:
        partitions = consumer.list_topics(topic, 20).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        found: list[Message] = []
        deadline = Deadline.after(CLOCK, 60)
        while len(found) < wanted:
            assert not deadline.passed, f"{len(found)} of {wanted} records of {topic}"
            found += [message for message in consumer.consume(100, 0.1) if message.error() is None]
        return found + [message for message in consumer.consume(100, 0.3) if message.error() is None]
    finally:
        consumer.close()


async def test_every_result_is_delivered_retried_or_dead_lettered(
    fleet: KafkaSettings, delivery: Metrics, site: Site, keyring: Keyring
) -> None:
    kinds = {kind: f"{site.origin}/{kind}" for kind in ("ok", "flaky", "down", "gone", "moved", "late")}
    kinds |= {"private": "http://10.0.0.1/"}
    put_results(fleet, {f"{kind}-{number}": url for kind, url in kinds.items() for number in range(8)}, "acme")
    letters = await asyncio.to_thread(read_all, fleet, fleet.topics.dead_letters, 4 * 8)
    # Each event gets these attempts: ok 1, flaky 3, down 3 (two tiers), gone 1, moved 3, late 2, private 1.
    attempts = await asyncio.to_thread(read_all, fleet, fleet.topics.attempts, (1 + 3 + 3 + 1 + 3 + 2 + 1) * 8)

    assert Counter(headers_of(letter)["reason"] for letter in letters) == {
        b"callback_exhausted": 2 * 8,
        b"endpoint_gone": 8,
        b"callback_refused": 8,
    }
    assert {key_of(letter).split("-")[0] for letter in letters} == {"down", "gone", "moved", "private"}
    said = [json.loads(value_of(attempt)) for attempt in attempts]
    assert Counter((one["job_id"].split("-")[0], one["attempt"], one["status"]) for one in said) == {
        ("ok", 1, 204): 8,
        ("flaky", 1, 500): 8,
        ("flaky", 2, 500): 8,
        ("flaky", 3, 200): 8,
        ("down", 1, 503): 8,
        ("down", 2, 503): 8,
        ("down", 3, 503): 8,
        ("gone", 1, 410): 8,
        ("moved", 1, 302): 8,
        ("moved", 2, 302): 8,
        ("moved", 3, 302): 8,
        ("late", 1, 504): 8,
        ("late", 2, 200): 8,
        ("private", 1, None): 8,
    }
    assert Counter(path for path, _, _ in site.got) == {
        "/ok": 8,
        "/flaky": 24,
        "/down": 24,
        "/gone": 8,
        "/moved": 24,  # no redirect is followed
        "/late": 16,
    }
    secrets, public_keys = keyring.secrets("acme", CLOCK.time()), keyring.public_keys("acme", CLOCK.time())
    for _, headers, body in site.got:
        verify(headers, body, secrets, [], CLOCK.time())
        verify(headers, body, [], public_keys, CLOCK.time())
        assert json.loads(body)["id"] == headers["webhook-id"] == f"msg_{json.loads(body)['data']['id']}"
    [*endpoints] = await asyncio.to_thread(read_all, fleet, fleet.topics.endpoints, 1)
    assert {endpoint.key() for endpoint in endpoints} == {f'["acme","{site.origin}/gone"]'.encode()}


async def test_a_record_that_is_too_large_to_be_kept_stops_nothing(
    fleet: KafkaSettings, delivery: Metrics, site: Site
) -> None:
    """No worker writes such a result.

    The compressed result is within the topic's size limit, but its rewritten copy is not.
    """
    producer = Producer({**fleet.client_config(), "compression.type": "lz4", "message.max.bytes": 8_000_000})
    headers = {"webhook-id": "msg_large", "job-id": "large", "callback-url": f"{site.origin}/down"}
    result = Result(job_id="large", outcome=Outcome.SUCCEEDED, text="x" * 3_000_000, created_at=1_700_000_000)
    producer.produce(fleet.topics.results, write_result(result), "large", 0, headers=list(headers.items()))
    assert producer.flush(20) == 0
    put_results(fleet, {f"ok-{number}": f"{site.origin}/ok" for number in range(8)}, "acme")
    [letter] = await asyncio.to_thread(read_all, fleet, fleet.topics.dead_letters, 1)
    await asyncio.to_thread(read_all, fleet, fleet.topics.attempts, 8)

    said = {name: value.decode() for name, value in headers_of(letter).items()}
    assert (said["reason"], said["webhook-id"], said["abridged"]) == ("unusable_result", "msg_large", "1")
    assert letter.value() is None
    assert Counter(path for path, _, _ in site.got) == {"/ok": 8}


async def test_results_whose_handling_raises_are_given_up_and_hold_nothing_up(
    fleet: KafkaSettings, delivery: Metrics, site: Site
) -> None:
    """More results raise an error than an origin has places, so each of these results has to return its place."""
    port = site.origin.rpartition(":")[2]
    urls = {f"poison-{number}": f"http://poison.example:{port}/ok" for number in range(200)}
    put_results(fleet, urls | {f"ok-{number}": f"http://fine.example:{port}/ok" for number in range(8)}, "acme")
    letters = await asyncio.to_thread(read_all, fleet, fleet.topics.dead_letters, len(urls))
    attempts = await asyncio.to_thread(read_all, fleet, fleet.topics.attempts, 8)

    assert {key_of(letter) for letter in letters} == set(urls)
    assert len(letters) == len(urls)
    said = [headers_of(letter) for letter in letters]
    assert {(one["reason"], one["reason-detail"], one["attempts"]) for one in said} == {
        (b"internal_error", b"the worker met an unexpected UnicodeError", b"1")
    }
    assert {one["callback-url"].decode() for one in said} == set(urls.values())
    assert {key_of(attempt).split("-")[0] for attempt in attempts} == {"ok"}
    assert Counter(path for path, _, _ in site.got) == {"/ok": 8}


A_SECOND = 4.0
FLOOD = 60


def test_callbacks_beyond_an_origins_rate_limit_wait_their_turn_and_hold_up_no_other(fleet_here: FleetHere) -> None:
    slow, fast = fleet_here.callbacks, Callbacks(fleet_here.keyring)
    try:
        slow.up()
        fast.up()
        limits = f'{{"http://127.0.0.1:{slow.port}": {A_SECOND}}}'
        fleet_here.worker("w1", "--engine", "echo", "--with-delivery", POSTBACK_DELIVERY__ORIGIN_RATE_LIMITS=limits)
        flood = [{"job_id": f"slow-{n}", "prompt": "x", "callback_url": slow.url} for n in range(FLOOD)]
        fleet_here.submit(flood)
        fleet_here.wait_for_results(FLOOD, 60)
        fleet_here.submit({"job_id": f"fast-{n}", "prompt": "x", "callback_url": fast.url} for n in range(FLOOD))
        eventually(lambda: len(fast.events) == FLOOD, 60, "a callback to the other origin waits")
        assert len(slow.events) < FLOOD
        fleet_here.wait_for_callbacks(FLOOD, 60)
        fleet_here.wait_until_nothing_is_left()
    finally:
        fast.end()

    began = sorted(one["at"] for one in fleet_here.attempts() if one["job_id"].startswith("slow"))
    assert len(began) == FLOOD
    # A busy machine begins some attempts late, so two may be close together, but all of them take the time of the rate.
    assert began[-1] - began[0] >= 0.8 * (FLOOD - 1) * 1000 / A_SECOND
    assert {len(events) for events in (*slow.events.values(), *fast.events.values())} == {1}
    assert fleet_here.dead_letters() == []


def abandoned(role: Role) -> int:
    """The number of records that the process abandoned when its partitions were revoked."""
    lines = [json.loads(line) for line in role.said().splitlines() if line.startswith("{")]
    return sum(line["postback.abandoned"] for line in lines if line.get("event.action") == "partitions-revoked")


def test_partitions_with_attempts_that_hang_go_to_another_process_before_the_attempts_deadline(
    fleet_here: FleetHere,
) -> None:
    fleet_here.callbacks.up()
    with socket.socket() as hung:  # the kernel accepts connections, and no code answers
        hung.bind(("127.0.0.1", 0))
        hung.listen(100)
        names = [f"hung-{number}" for number in range(4 * PARTITIONS)]
        url = f"http://127.0.0.1:{hung.getsockname()[1]}/hook"
        put_results(fleet_here.kafka, dict.fromkeys(names, url))
        first = fleet_here.deliver("d1", POSTBACK_DELIVERY__DEADLINE_SECONDS="25")
        eventually(lambda: first.metrics()["postback_in_flight"] == len(names), 60, "not all attempts are under way")
        second = fleet_here.deliver("d2", POSTBACK_DELIVERY__DEADLINE_SECONDS="25")
        # The rebalance has to happen before the attempts' deadline: an attempt that ended by itself is not abandoned.
        eventually(lambda: abandoned(first) > 0, 60, first.said)
        eventually(lambda: second.metrics()["postback_in_flight"] > 0, 60, "the next owner does not try the callbacks")

        fine = {f"ok-{number}": fleet_here.callbacks.url for number in range(4 * PARTITIONS)}
        put_results(fleet_here.kafka, fine)
        fleet_here.wait_for_callbacks(4 * PARTITIONS, 60)
