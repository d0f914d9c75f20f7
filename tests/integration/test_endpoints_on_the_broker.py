"""Slow, dead and refusing endpoints on a real broker and real sockets: their cost to others, and kept events."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from confluent_kafka import Producer

from bench.committed import committed_records
from cli.operations.endpoints import known_endpoints
from cli.operations.topics import create_topics
from schemas.codec import write_result
from schemas.endpoint import DisabledBecause, EndpointRecord, EndpointState, key_bytes, read_endpoint, write_endpoint
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.messages import headers_of, value_of
from workers.delivery.deliver import DeliveryHandler
from workers.delivery.keyring import Keyring
from workers.delivery.post import Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy
from workers.kafka.compacted import Follower
from workers.roles.delivery import stages_of

pytestmark = pytest.mark.broker

CLOCK = SystemClock()
QUICK = {"breaker_open_seconds": 0.2, "breaker_longest_seconds": 0.4}


@dataclass
class Site:
    """A consumer of webhooks on its own origin."""

    status: int = 204
    gate: asyncio.Event | None = None
    """If given, answers wait for this event."""
    got: list[str] = field(default_factory=list)
    """The `webhook-id` of each request, in order."""
    running: int = 0
    most_running: int = 0
    origin: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        await request.read()
        self.got.append(request.headers["webhook-id"])
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.running -= 1
        return web.Response(status=self.status)

    @asynccontextmanager
    async def up(self, port: int | None = None) -> AsyncIterator[None]:
        application = web.Application()
        application.router.add_post("/{path}", self.answer)
        async with TestServer(application, port=port) as server:
            self.origin = str(server.make_url("/").origin())
            yield


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    async with site.up():
        yield site


@dataclass
class Fleet:
    """A fleet, and delivery stages that run against it in this process."""

    kafka: KafkaSettings
    keyring: Keyring
    stack: AsyncExitStack
    metrics: Metrics = field(default_factory=Metrics)

    @asynccontextmanager
    async def delivery(self, **settings: float) -> AsyncIterator[None]:
        """Run the stages of `workers.roles.delivery` with loopback allowed; settings may exceed their bounds."""
        chosen = DeliverySettings().model_copy(update=settings)
        policy = EgressPolicy(allow=(ip_network("127.0.0.1/32"),), development=True)
        topics = self.kafka.topics
        handler = DeliveryHandler(topics, self.keyring, Poster(chosen, policy, CLOCK), CLOCK, self.metrics, chosen)
        followed = Follower(self.kafka, CLOCK)
        await followed.follow(topics.endpoints, handler.states.apply)
        handler.states.show()
        stages = stages_of(handler, chosen, self.kafka, "r1", CLOCK, self.metrics)
        running = [asyncio.ensure_future(stage.run()) for stage in stages]
        try:
            yield
        finally:
            for stage in stages:
                stage.stop()
            await asyncio.gather(*running)
            await handler.close()
            await followed.close()

    def put(self, url: str, names: Iterable[str], tenant: str = "acme", partition: int = -1) -> None:
        """Write a settled result for each name, to a partition by its name; `{}` in the URL becomes the name."""
        producer = Producer({**self.kafka.client_config(), "linger.ms": 20})
        value = write_result(Result(job_id="job", outcome=Outcome.SUCCEEDED, text="Paris", created_at=1_700_000_000))
        for name in names:
            headers = {"tenant": tenant, "webhook-id": name, "job-id": name, "callback-url": url.format(name)}
            producer.produce(self.kafka.topics.results, value, name, partition, headers=list(headers.items()))
            producer.poll(0)
        assert producer.flush(60) == 0

    def put_state(self, record: EndpointRecord) -> None:
        producer = Producer(self.kafka.client_config())
        producer.produce(self.kafka.topics.endpoints, write_endpoint(record), key_bytes(record.key), 0)
        assert producer.flush(20) == 0

    async def attempts(self) -> list[dict[str, Any]]:
        records = await asyncio.to_thread(committed_records, self.kafka.client_config(), self.kafka.topics.attempts)
        return [json.loads(value_of(record)) for record in records]

    async def in_tiers(self) -> set[str]:
        """Return each job that has, or once had, a record in a tier."""
        found: set[str] = set()
        for topic in self.kafka.topics.tiers.values():
            records = await asyncio.to_thread(committed_records, self.kafka.client_config(), topic)
            found |= {headers_of(record)["job-id"].decode() for record in records}
        return found

    async def letters(self) -> Counter[str]:
        """The number of dead letters by reason."""
        topic = self.kafka.topics.dead_letters
        records = await asyncio.to_thread(committed_records, self.kafka.client_config(), topic)
        return Counter(headers_of(record)["reason"].decode() for record in records)

    async def states(self) -> list[EndpointRecord]:
        topic = self.kafka.topics.endpoints
        records = await asyncio.to_thread(committed_records, self.kafka.client_config(), topic)
        return [read_endpoint(value_of(record)) for record in records]

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def fleet_with(fleet: KafkaSettings, tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    def make(*tiers: float) -> Fleet:
        kafka = fleet.model_copy(update={"tier_delays_seconds": tiers}) if tiers else fleet
        create_topics(kafka)
        return Fleet(kafka, Keyring.create(tmp_path / "keyring.json", CLOCK), AsyncExitStack())

    yield make


async def until(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    try:
        async with asyncio.timeout(120):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(what())


async def test_twenty_thousand_results_for_a_hung_endpoint_keep_no_other_endpoint_waiting(
    fleet_with: Callable[..., Fleet], site: Site
) -> None:
    fleet, hung = fleet_with(5.0, 60.0), Site(gate=asyncio.Event())
    queued = [f"hung-{number}" for number in range(20_000)]
    healthy = [f"ok-{number}" for number in range(400)]
    async with hung.up(), fleet.delivery(deadline_seconds=600.0):
        assert hung.gate is not None
        # All hung events precede the healthy ones in one partition, whose first record stays unanswered.
        fleet.put(f"{hung.origin}/hook", queued, partition=2)
        fleet.put(f"{site.origin}/hook", healthy, partition=2)
        await until(lambda: len(site.got) >= 400, lambda: f"{len(site.got)} of 400 were served")

        # The hung endpoint has answered nothing yet: its places are taken, and its other events are deferred.
        assert len(hung.got) == hung.running == DeliverySettings().destination_concurrency
        assert fleet.counted("postback_deferred_total") >= 10_000
        hung.gate.set()
    assert sorted(site.got) == sorted(healthy)
    # A deferral is no attempt and loses nothing: unsent events are in a tier.
    attempts = await fleet.attempts()
    assert sorted(one["job_id"] for one in attempts) == sorted(hung.got + site.got)
    sent = {one["job_id"] for one in attempts if one["error"] is None}
    assert sent | await fleet.in_tiers() == {*queued, *healthy}


async def test_a_dead_origin_is_left_alone_until_a_probe_succeeds(fleet_with: Callable[..., Fleet], site: Site) -> None:
    # The schedule has so many waits that no event reaches its end by probing the origin.
    fleet, dead = fleet_with(0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5), Site()
    with socket.socket() as reserved:  # the port is bound but not listening, so connections are refused
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        names = [f"dead-{number}" for number in range(300)]
        async with fleet.delivery(destination_concurrency=8, breaker_failures=10, **QUICK):
            fleet.put(f"http://127.0.0.1:{port}/hook", names)
            fleet.put(f"{site.origin}/hook", ["ok"])
            # After three openings at least two probes have failed.
            await until(lambda: fleet.counted("postback_breaker_changes_total", state="open") >= 3, lambda: "no probe")
            await until(lambda: len(site.got) == 1, lambda: "the healthy one was not served")
            reserved.close()
            async with dead.up(port):
                await until(lambda: len(set(dead.got)) == 300, lambda: f"{len(set(dead.got))} of 300 were served")
    assert sorted(dead.got) == sorted(names)
    assert fleet.counted("postback_breaker_changes_total", state="closed") == 1
    failed = [one for one in await fleet.attempts() if one["error"] is not None]
    opened = fleet.counted("postback_breaker_changes_total", state="open")
    # Ten failures open the breaker while seven more attempts are in flight, and each failed probe adds one.
    assert 10 <= len(failed) <= 10 + 7 + opened
    assert await fleet.letters() == {}


async def test_an_endpoint_that_is_gone_is_called_no_more_and_its_events_are_kept(
    fleet_with: Callable[..., Fleet], site: Site
) -> None:
    fleet = fleet_with()
    gone = f"{site.origin}/gone"
    async with fleet.delivery():
        site.status = 410
        fleet.put(gone, ["first"])
        await until(lambda: fleet.counted("postback_disabled_endpoints") == 1, lambda: "it is not disabled")
        site.status = 204
        fleet.put(gone, [f"kept-{number}" for number in range(20)])
        fleet.put(gone, ["other-tenant"], tenant="globex")
        fleet.put(f"{site.origin}/other-path", ["other-path"])

        def kept() -> float:
            return fleet.counted("postback_dead_letters_total", reason="endpoint_disabled")

        await until(lambda: kept() == 20 and len(site.got) == 3, lambda: f"{kept()} of 20 are kept")
    # A new process knows that the endpoint is disabled before the process sends anything.
    fleet.put(gone, ["after-restart"])
    async with fleet.delivery():
        await until(lambda: kept() == 21, lambda: "the event from after the restart is not kept")
        fleet.put_state(EndpointRecord(tenant="acme", url=gone, state=EndpointState.ENABLED, at=1))
        await until(lambda: fleet.counted("postback_disabled_endpoints") == 0, lambda: "it is not enabled")
        fleet.put(gone, ["enabled"])
        await until(lambda: len(site.got) == 4, lambda: "an endpoint that was enabled is not called")
    assert site.got[0] == "first"
    assert sorted(site.got[1:]) == ["enabled", "other-path", "other-tenant"]
    assert await fleet.letters() == {"endpoint_gone": 1, "endpoint_disabled": 21}
    assert len(await fleet.attempts()) == 4


async def test_an_endpoint_that_fails_for_too_long_is_disabled_and_the_reason_is_kept(
    fleet_with: Callable[..., Fleet], site: Site
) -> None:
    fleet, site.status = fleet_with(), 503
    async with fleet.delivery(disable_after_seconds=0.5, **QUICK):
        async with asyncio.timeout(60):
            for number in itertools.count():
                if fleet.counted("postback_disabled_endpoints"):
                    break
                fleet.put(f"{site.origin}/down", [f"down-{number}"])
                await asyncio.sleep(0.1)
        asked = len(site.got)
        fleet.put(f"{site.origin}/down", ["late"])
        await until(
            lambda: fleet.counted("postback_dead_letters_total", reason="endpoint_disabled") >= 1,
            lambda: "its events are not kept",
        )
    failing, *_, disabled = await fleet.states()
    assert (failing.state, disabled.state, disabled.reason) == (
        EndpointState.FAILING,
        EndpointState.DISABLED,
        DisabledBecause.FAILING,
    )
    assert disabled.at - failing.at >= 500
    assert "late" not in site.got
    assert len(site.got) <= asked + 1  # one request may have been in flight


async def test_a_separate_url_for_each_job_leaves_no_more_records_than_a_tenant_may_have(
    fleet_with: Callable[..., Fleet], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.delivery.endpoint_states.MOST_DISABLED", 20)
    fleet = fleet_with()
    numbers = itertools.count()

    def put(jobs: int) -> None:
        fleet.put(f"{site.origin}/{{}}", [f"job-{number}" for number in itertools.islice(numbers, jobs)])

    def counted(reason: str) -> float:
        return fleet.counted("postback_dead_letters_total", reason=reason)

    idle = EndpointRecord(tenant="acme", url=f"{site.origin}/idle", state=EndpointState.FAILING, at=1)
    operator = EndpointRecord(
        tenant="acme", url=f"{site.origin}/stop", state=EndpointState.DISABLED, at=1, reason=DisabledBecause.OPERATOR
    )
    fleet.put_state(idle)
    fleet.put_state(operator)
    # The breaker is hardly ever open, so that all events are attempted.
    async with fleet.delivery(disable_after_seconds=0.5, breaker_open_seconds=0.01, breaker_longest_seconds=0.01):
        site.status = 503  # each event fails three times, and these failures span more than disable_after_seconds
        put(40)
        await until(lambda: counted("callback_exhausted") == 40, lambda: "not all are given up")
        site.status = 410
        put(60)
        await until(lambda: counted("endpoint_gone") == 60, lambda: "not all are answered with 410")
        await until(lambda: fleet.counted("postback_disabled_endpoints") == 20, lambda: "not all are disabled")
    # A new process reads the same disabled endpoints, and keeps to the same bound on their number.
    async with fleet.delivery():
        put(10)
        await until(lambda: counted("endpoint_gone") == 70, lambda: "not all are answered with 410")
        fleet.put(operator.url, ["kept"])
        await until(lambda: counted("endpoint_disabled") == 1, lambda: "an operator's word is lost")
    assert fleet.counted("postback_endpoints_disabled_total", reason="gone") == 19
    known = await asyncio.to_thread(known_endpoints, fleet.kafka)
    assert Counter(record.reason for record in known.values()) == {
        DisabledBecause.GONE: 19,
        DisabledBecause.OPERATOR: 1,
    }
    assert idle.key not in known  # attempts at other endpoints evict an endpoint without attempts


async def test_a_topic_is_read_to_its_end_although_a_process_died_with_a_transaction_open_in_it(
    fleet: KafkaSettings,
) -> None:
    def transaction(identity: str, key: str) -> Producer:
        producer = Producer({**fleet.client_config(), "transactional.id": f"{fleet.topic_prefix}{identity}"})
        producer.init_transactions(20)
        producer.begin_transaction()
        producer.produce(fleet.topics.endpoints, b"{}", key, 0)
        assert producer.flush(20) == 0
        return producer

    known: list[bytes | None] = []
    transaction("first", "before").commit_transaction(20)
    left_open = transaction("dead", "never")
    transaction("second", "behind").commit_transaction(20)
    followed = Follower(fleet, CLOCK)
    starting = asyncio.ensure_future(followed.follow(fleet.topics.endpoints, lambda key, value: known.append(key)))
    await until(lambda: known == [b"before"], lambda: f"{known} is known")
    assert not starting.done()  # the start waits for records behind the open transaction, which cannot be read yet
    await asyncio.to_thread(left_open.abort_transaction, 20)
    await starting
    assert known == [b"before", b"behind"]
    transaction("third", "later").commit_transaction(20)
    await until(lambda: known[2:] == [b"later"], lambda: f"{known} is known")
    await followed.close()
