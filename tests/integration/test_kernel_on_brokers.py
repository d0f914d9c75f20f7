"""The kernel on real brokers: followed topics that are away, contact with the group, and records not yet due."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from cli.devkit.broker import Broker
from cli.operations.topics import configure_groups
from schemas.settings import FleetSettings, KafkaSettings
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.product import Product, eventually
from workers.delivery.endpoint_states import EndpointStates
from workers.delivery.keyring import Keyring
from workers.kafka.compacted import SILENT_SECONDS, STALE_SECONDS, START_SECONDS, Follower, FollowingEnded
from workers.kafka.topics import BrokerAway
from workers.roles.delivery import run_delivery
from workers.roles.process import Listen
from workers.stage.build import group_stage
from workers.stage.record import Failure, Output, Record
from workers.stage.settings import StageSettings
from workers.stage.source import GroupSource, PartitionId

pytestmark = pytest.mark.broker

POISON = b"poison"


class SkippingClock(SystemClock):
    """The machine's clock, which a test can move forward."""

    def __init__(self, skipped: float = 0.0) -> None:
        self.skipped = skipped

    def time(self) -> float:
        return super().time() + self.skipped

    def monotonic(self) -> float:
        return super().monotonic() + self.skipped


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    with Broker.start() as broker:
        yield broker


def put(kafka: KafkaSettings, topic: str, key: bytes) -> None:
    producer = Producer(kafka.client_config())
    producer.produce(topic, b"{}", key, 0)
    assert producer.flush(30) == 0


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(what)


async def test_the_start_waits_longer_for_a_leader_of_a_partition_than_for_an_answer(
    fleet: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, ask, refusals = SkippingClock(), Follower._ask_ends, [KafkaError.NOT_LEADER_FOR_PARTITION] * 3

    def late(self: Follower, *more: Any) -> dict[int, int]:
        if refusals:
            clock.skipped += START_SECONDS / 4
            raise KafkaException(KafkaError(refusals.pop()))
        return ask(self, *more)

    monkeypatch.setattr(Follower, "_ask_ends", late)
    followed = Follower(fleet, clock)
    await followed.follow(fleet.topics.control, lambda key, value: None)
    await followed.close()
    for code, times in ((KafkaError.NOT_LEADER_FOR_PARTITION, 4), (KafkaError._TRANSPORT, 1)):
        refusals += [code] * times
        with pytest.raises(BrokerAway, match="does not give the end"):
            await Follower(fleet, clock).follow(fleet.topics.control, lambda key, value: None)
        assert refusals == []


async def test_an_absent_broker_is_reported_and_followed_again_and_after_half_a_day_the_topic_counts_as_lost(
    own_broker: Broker, make_fleet: Callable[[str], KafkaSettings]
) -> None:
    fleet, clock = make_fleet(own_broker.bootstrap_servers), SkippingClock()
    known: list[bytes | None] = []
    followed = Follower(fleet, clock)
    put(fleet, fleet.topics.control, b"before")
    await followed.follow(fleet.topics.control, lambda key, value: known.append(key))
    assert (known, followed.reasons(), followed.alive) == ([b"before"], [], True)

    await asyncio.to_thread(own_broker.pause)
    clock.skipped += SILENT_SECONDS + 1
    [reason] = followed.reasons()
    assert reason.startswith(f"the topic {fleet.topics.control} could not be read for ")
    # An unreachable broker does not end the thread.
    await until(lambda: followed.alive, "the thread does not come round")
    assert followed.reasons()
    await asyncio.to_thread(own_broker.resume)
    await until(lambda: not followed.reasons(), "it is not heard of again")
    put(fleet, fleet.topics.control, b"after")
    await until(lambda: known == [b"before", b"after"], "it is not followed any more")

    await asyncio.to_thread(own_broker.pause)
    clock.skipped += STALE_SECONDS + 1
    with pytest.raises(FollowingEnded, match="no news for more than 12 hours"):
        await asyncio.wait_for(followed.ended(), 60)
    assert followed.reasons() == [f"the topic {fleet.topics.control} is not followed any more"]
    assert not followed.alive
    await followed.close()
    await asyncio.to_thread(own_broker.resume)


async def test_topics_are_followed_one_after_the_other_with_one_client(fleet: KafkaSettings) -> None:
    topics = (fleet.topics.control, fleet.topics.endpoints, fleet.topics.rollouts)
    known: dict[str, list[bytes | None]] = {topic: [] for topic in topics}
    followed = Follower(fleet, SystemClock())
    for topic, keys in known.items():
        put(fleet, topic, b"before")
        await followed.follow(topic, lambda key, value, keys=keys: keys.append(key))  # type: ignore[misc]
        assert keys == [b"before"]
    for topic in known:
        put(fleet, topic, b"after")
    await until(lambda: all(keys == [b"before", b"after"] for keys in known.values()), "a topic is not followed")
    assert (followed.reasons(), followed.alive) == ([], True)
    await followed.close()


async def test_records_that_are_too_old_are_skipped_at_the_start(fleet: KafkaSettings) -> None:
    put(fleet, fleet.topics.control, b"before")
    hour_ms = 3600 * 1000
    known: list[bytes | None] = []

    async def following(kept_ms: int) -> Follower:
        follower = Follower(fleet, SkippingClock(hour_ms / 1000))
        await follower.follow(fleet.topics.control, lambda key, value: known.append(key), kept_ms)
        return follower

    followed = await following(2 * hour_ms)
    assert known == [b"before"]
    await followed.close()
    known.clear()

    followed = await following(hour_ms // 2)
    assert known == []
    put(fleet, fleet.topics.control, b"after")
    await until(lambda: known == [b"after"], "it is not followed")
    await followed.close()


async def test_a_record_that_cannot_be_applied_at_the_start_is_reported_at_once(fleet: KafkaSettings) -> None:
    def fail(key: bytes | None, value: bytes | None) -> None:
        raise ValueError("private detail")

    put(fleet, fleet.topics.control, POISON)
    followed = Follower(fleet, SystemClock())
    with pytest.raises(FollowingEnded, match=r"cannot be followed any more \(ValueError\)"):
        await followed.follow(fleet.topics.control, fail)
    await followed.close()


async def test_a_process_that_can_no_longer_follow_the_endpoints_ends(
    fleet: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(states: EndpointStates, key: bytes | None, value: bytes | None) -> None:
        if key == POISON:
            raise ValueError("a defect")

    monkeypatch.setattr(EndpointStates, "apply", poisoned)
    monkeypatch.setattr(
        "workers.roles.supervision.collect_garbage_seldom", lambda: None
    )  # replaced, because the real function would change the test process's garbage collector
    Keyring.create(tmp_path / "keyring.json", SystemClock())
    settings = FleetSettings(kafka=fleet, keyring=str(tmp_path / "keyring.json"), env="development")
    ports: list[int] = []
    running = asyncio.ensure_future(run_delivery(settings, Listen(), ports.append))

    def ready() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", ports[0], timeout=10)
        connection.request("GET", "/readyz")
        said: bool = json.loads(connection.getresponse().read())["ready"]
        connection.close()
        return said

    async with asyncio.timeout(60):
        while not ports or not await asyncio.to_thread(ready):
            await asyncio.wait({running}, timeout=0.05)
            assert not running.done(), running.exception()
    put(fleet, fleet.topics.endpoints, POISON)
    with pytest.raises(FollowingEnded, match=f"the topic {fleet.topics.endpoints} cannot be followed any more"):
        await asyncio.wait_for(running, 60)


@pytest.mark.parametrize("role", ["worker", "deliver"])
def test_a_process_that_is_stopped_during_its_initial_reading_exits_0(product: Product, role: str) -> None:
    kafka = product.kafka
    topic = kafka.topics.control if role == "worker" else kafka.topics.endpoints
    held = Producer({**kafka.client_config(), "transactional.id": f"{kafka.topic_prefix}held"})
    held.init_transactions(20)
    held.begin_transaction()
    held.produce(topic, b"{}", b"never", 0)
    assert held.flush(20) == 0

    process = product.worker("w1") if role == "worker" else product.deliver("d1")
    eventually(lambda: "topic-reading" in process.said(), 60, process.said)
    assert process.ready() == (False, ["the process is starting"])
    assert process.terminate() == 0
    assert "Stopping during the start" in process.said()
    held.abort_transaction(20)


# -- contact with the group ----------------------------------------------------------------------------------------


class Held:
    """A listener that remembers its partitions."""

    def __init__(self) -> None:
        self.partitions: set[PartitionId] = set()

    def assigned(self, partitions: Sequence[PartitionId]) -> None:
        self.partitions |= set(partitions)

    def revoked(self, partitions: Sequence[PartitionId]) -> None:
        self.partitions -= set(partitions)

    lost = revoked


@pytest.fixture
def intakes(fleet: KafkaSettings) -> Iterator[tuple[GroupSource, GroupSource]]:
    """Two consumers of a topic with one partition, before either has joined."""
    group = f"{fleet.topic_prefix}contact"
    configure_groups(fleet, [group])
    with ExitStack() as stack:
        made = [
            GroupSource(fleet.client_config(), group, [fleet.topics.control], on_error=lambda error: None)
            for _ in range(2)
        ]
        for intake in made:
            stack.callback(intake.leave)
        yield made[0], made[1]


def test_a_consumer_is_a_member_once_it_is_admitted_even_without_partitions(
    intakes: tuple[GroupSource, GroupSource],
) -> None:
    first, second = intakes
    holds_first, holds_second = Held(), Held()

    def is_member(intake: GroupSource, *others: GroupSource) -> bool:
        for one in (intake, *others):
            one.consume(1, 0.02)
        return intake.contact().member

    first.join(holds_first)
    assert not first.contact().member  # Kafka has not answered the first member's request to join yet
    assert not second.contact().member
    eventually(lambda: is_member(first) and bool(holds_first.partitions), 20, "the first is not let in")

    second.join(holds_second)
    eventually(lambda: is_member(second, first), 20, "the second is not let in")
    assert len(holds_first.partitions) + len(holds_second.partitions) == 1
    assert first.contact().silent_seconds == second.contact().silent_seconds == 0


# -- records that wait until they are due --------------------------------------------------------------------------

CLOCK = SystemClock()


class Collector:
    """A handler that remembers every record."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, int]] = set()

    async def handle(self, record: Record) -> Sequence[Output]:
        self.seen.add((record.partition, record.offset))
        return ()

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        raise AssertionError(failure.message)


class DueWhenAskedAgain:
    """A pace that calls a record far from due the first three times that the stage asks, and then due."""

    def __init__(self) -> None:
        self._asked = Counter[tuple[int, int]]()

    def room(self) -> int:
        return 1 << 30

    def due_ms(self, record: Record) -> int | None:
        place = record.partition, record.offset
        self._asked[place] += 1
        return None if self._asked[place] > 3 else round(CLOCK.time() * 1000) + 3_600_000

    @property
    def paced(self) -> bool:
        return True


async def test_a_record_that_comes_due_after_it_was_put_off_does_not_leave_its_partition_paused(
    fleet: KafkaSettings,
) -> None:
    producer = Producer(fleet.client_config())
    for number in range(16):
        producer.produce(fleet.topics.results, b"{}", partition=number % 4)
    assert producer.flush(20) == 0
    handler = Collector()
    stage = group_stage(
        StageSettings("delivery"),
        fleet,
        [fleet.topics.results],
        "r1",
        handler,
        CLOCK,
        Metrics(),
        DueWhenAskedAgain(),
    )
    running = asyncio.ensure_future(stage.run())
    try:
        async with asyncio.timeout(60):
            while len(handler.seen) < 16:
                await asyncio.sleep(0.02)
    finally:
        stage.stop()
        await running
