"""The same scripts against a real broker and the simulation's model of Kafka, so that the model cannot drift."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from schemas.settings import KafkaSettings
from telemetry.clock import Clock, Deadline, SystemClock
from telemetry.hand_clock import HandClock
from tests.simulation.kafka import Kafka, ModelConsumer, ModelProducer
from workers.stage.producer import producer_config
from workers.stage.source import GroupSource

PARTITIONS = 4
SECONDS = 10.0


class Cluster(Protocol):
    """Real brokers or the model."""

    clock: Clock
    topic: str
    """A topic of PARTITIONS partitions."""

    def producer(self, transactional_id: str) -> Producer:
        """Make a producer as the kernel does, and initialise its transactions."""
        ...

    def consumer(self, config: dict[str, Any]) -> Consumer:
        """Make a consumer."""
        ...


class ModelCluster:
    """The model, in a process that no fault befalls."""

    name = "here"
    laziness = 1
    reachable = True
    topic = "topic"

    def __init__(self) -> None:
        self.clock: Clock = HandClock()
        self._kafka = Kafka(self.clock, random.Random(0))
        self._kafka.create(self.topic, PARTITIONS)

    def producer(self, transactional_id: str) -> Any:
        made = ModelProducer(self._kafka, self, producer_config({}, transactional_id))
        made.init_transactions(SECONDS)
        return made

    def consumer(self, config: dict[str, Any]) -> Any:
        return ModelConsumer(self._kafka, self, config)

    def point(self, what: str = "") -> None:
        """Go on: there is one thread."""

    def wait(self, seconds: float) -> None:
        """Let the time pass."""
        self.clock.sleep(seconds)

    def wake(self) -> None:
        """Do nothing: there is one thread."""


class RealCluster:
    """Real brokers."""

    def __init__(self, fleet: KafkaSettings) -> None:
        self.clock: Clock = SystemClock()
        self.topic = fleet.topics.requests()
        self._fleet = fleet

    def producer(self, transactional_id: str) -> Producer:
        unique = f"{self._fleet.topic_prefix}{transactional_id}"
        made = Producer(producer_config(self._fleet.client_config(), unique))
        made.init_transactions(SECONDS)
        return made

    def consumer(self, config: dict[str, Any]) -> Consumer:
        return Consumer({**config, **self._fleet.client_config()})


class Member:
    """A member of a group, with the kernel's consumer, that keeps a list of all it is told."""

    def __init__(self, cluster: Cluster, group: str) -> None:
        self.told: list[tuple[str, list[int]]] = []
        self.held: set[int] = set()
        self.offsets: dict[int, list[int]] = {number: [] for number in range(PARTITIONS)}
        self.ends: dict[int, int] = {}
        self._clients: list[Consumer] = []

        def make(config: dict[str, Any]) -> Consumer:
            self._clients.append(cluster.consumer(config))
            return self._clients[-1]

        self.intake = GroupSource({}, group, [cluster.topic], on_error=lambda error: None, make_consumer=make)
        self.intake.join(self)

    @property
    def client(self) -> Consumer:
        return self._clients[0]

    def assigned(self, partitions: Any) -> None:
        if partitions:  # a real broker may also confirm an assignment without a new partition
            self.told.append(("assigned", sorted(number for _, number in partitions)))
        self.held |= {number for _, number in partitions}

    def revoked(self, partitions: Any) -> None:
        self.told.append(("revoked", sorted(number for _, number in partitions)))
        self.held -= {number for _, number in partitions}

    def lost(self, partitions: Any) -> None:
        self.told.append(("lost", sorted(number for _, number in partitions)))
        self.held -= {number for _, number in partitions}

    def read(self) -> None:
        records, ends = self.intake.consume(100, 0.05)
        for record in records:
            self.offsets[record.partition].append(record.offset)
        self.ends.update({number: offset for _, number, offset in ends})


@pytest.fixture(params=["model", "broker"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "model":
        return ModelCluster()
    fleet: KafkaSettings = request.getfixturevalue("fleet")
    return RealCluster(fleet)


class TestKafka:
    """The facts about Kafka that the simulation builds on."""

    @pytest.fixture(autouse=True)
    def _members(self, cluster: Cluster) -> Iterator[None]:
        self.cluster = cluster
        self.group = f"group-{uuid.uuid4().hex}"
        self.members: list[Member] = []
        yield
        for member in self.members:
            member.intake.leave()

    def member(self) -> Member:
        self.members.append(Member(self.cluster, self.group))
        return self.members[-1]

    def until(self, is_so: Callable[[], bool]) -> None:
        """Let all members read until the condition holds."""
        deadline = Deadline.after(self.cluster.clock, 30)
        while not is_so():
            assert not deadline.passed, [(member.told, member.offsets, member.ends) for member in self.members]
            for member in self.members:
                member.read()

    def write(self, producer: Producer, *partitions: int) -> None:
        """Begin a transaction, and write a record to each of these partitions."""
        producer.begin_transaction()
        for number in partitions:
            producer.produce(self.cluster.topic, b"value", partition=number)
        producer.flush(SECONDS)

    def at(self, number: int, offset: int, metadata: str = "") -> list[TopicPartition]:
        return [TopicPartition(self.cluster.topic, number, offset, metadata)]

    def committed(self, member: Member, number: int, seconds: float = SECONDS) -> tuple[int, str | None]:
        (found,) = member.client.committed([TopicPartition(self.cluster.topic, number)], seconds)
        assert found.error is None
        return found.offset, found.metadata

    def test_partitions_that_are_assigned_again_are_read_from_the_committed_offset(self) -> None:
        producer, member = self.cluster.producer("a"), self.member()
        self.write(producer, 0, 0, 1)
        producer.commit_transaction(SECONDS)
        self.until(lambda: (member.offsets[0], member.offsets[1]) == ([0, 1], [0]))
        member.intake.assign_again([(self.cluster.topic, 0)])
        self.until(lambda: member.offsets[0] == [0, 1, 0, 1])
        assert (member.offsets[1], member.told) == ([0], [("assigned", [0, 1, 2, 3])])

    def test_markers_and_aborted_records_occupy_offsets_that_are_not_delivered(self) -> None:
        producer = self.cluster.producer("a")
        self.write(producer, 0, 0, 1)
        producer.commit_transaction(SECONDS)
        self.write(producer, 0)
        producer.abort_transaction(SECONDS)
        self.write(producer, 0)
        producer.commit_transaction(SECONDS)
        reader = self.member()
        self.until(lambda: reader.ends == {0: 7, 1: 2, 2: 0, 3: 0})
        assert reader.offsets == {0: [0, 1, 5], 1: [0], 2: [], 3: []}

    def test_an_open_transaction_holds_readers_at_its_first_record(self) -> None:
        slow, quick, reader = self.cluster.producer("slow"), self.cluster.producer("quick"), self.member()
        self.until(lambda: len(reader.ends) == PARTITIONS)
        self.write(quick, 0)
        quick.commit_transaction(SECONDS)
        self.until(lambda: reader.ends[0] == 2)  # the marker may come after the answer
        self.write(slow, 0)
        self.write(quick, 0, 1)
        quick.commit_transaction(SECONDS)
        self.until(lambda: reader.ends[1] == 2)
        assert reader.offsets == {0: [0], 1: [0], 2: [], 3: []}
        assert reader.intake.watermarks((self.cluster.topic, 0), cached=False) == (0, 2)
        slow.commit_transaction(SECONDS)
        self.until(lambda: reader.ends[0] == 6)  # records at 2 and 3, a marker for each of the two producers
        assert reader.offsets[0] == [0, 2, 3]

    def test_a_second_producer_with_the_same_id_fences_the_first_and_aborts_its_transaction(self) -> None:
        first, reader = self.cluster.producer("a"), self.member()
        self.write(first, 0)
        second = self.cluster.producer("a")
        with pytest.raises(KafkaException) as raised:
            first.commit_transaction(SECONDS)
        assert (raised.value.args[0].code(), raised.value.args[0].fatal()) == (KafkaError._FENCED, True)
        self.write(second, 0)
        second.commit_transaction(SECONDS)
        self.until(lambda: reader.ends.get(0) == 4)
        assert reader.offsets[0] == [2]

    def test_offsets_and_metadata_of_a_transaction_count_once_it_is_committed(self) -> None:
        producer, member = self.cluster.producer("a"), self.member()
        self.until(lambda: member.held == set(range(PARTITIONS)))
        assert self.committed(member, 1)[0] < 0
        self.write(producer, 1)
        producer.send_offsets_to_transaction(self.at(1, 3, "metadata"), member.intake.group_metadata(), SECONDS)
        with pytest.raises(KafkaException) as raised:
            self.committed(member, 1, 0.5)
        assert raised.value.args[0].code() == KafkaError._TIMED_OUT
        producer.commit_transaction(SECONDS)
        assert self.committed(member, 1) == (3, "metadata")
        producer.begin_transaction()
        producer.send_offsets_to_transaction(self.at(1, 5, "later"), member.intake.group_metadata(), SECONDS)
        producer.abort_transaction(SECONDS)
        assert self.committed(member, 1) == (3, "metadata")

    @pytest.mark.parametrize("applied", [True, False])
    def test_only_the_committed_offsets_show_if_a_transaction_without_an_answer_was_committed(
        self, applied: bool
    ) -> None:
        lost, member = self.cluster.producer("a"), self.member()
        self.until(lambda: member.held == set(range(PARTITIONS)))
        self.write(lost, 0)
        lost.send_offsets_to_transaction(self.at(0, 1, "done"), member.intake.group_metadata(), SECONDS)
        if applied:
            lost.commit_transaction(SECONDS)
        self.cluster.producer("a")
        assert (self.committed(member, 0) == (1, "done")) is applied
        self.until(lambda: member.ends.get(0) == 2)
        assert member.offsets[0] == ([0] if applied else [])

    def test_a_transaction_ends_before_the_next_one_begins(self) -> None:
        producer = self.cluster.producer("a")
        with pytest.raises(KafkaException) as raised:
            producer.commit_transaction(SECONDS)
        assert raised.value.args[0].code() == KafkaError._STATE
        self.write(producer, 0)
        with pytest.raises(KafkaException):
            producer.begin_transaction()
        producer.commit_transaction(SECONDS)
        self.write(producer, 0)
        producer.abort_transaction(SECONDS)

    def test_a_newcomer_gets_partitions_when_the_first_member_has_revoked_them(self) -> None:
        first = self.member()
        self.until(lambda: first.held == set(range(PARTITIONS)))
        second = self.member()
        self.until(lambda: len(first.held) == len(second.held) == 2)
        assert first.told == [("assigned", [0, 1, 2, 3]), ("revoked", sorted(second.held))]
        assert second.told == [("assigned", sorted(second.held))]
        second.intake.leave()
        self.members.remove(second)
        self.until(lambda: first.held == set(range(PARTITIONS)))

    def test_a_member_of_an_older_epoch_may_not_commit(self) -> None:
        producer, first = self.cluster.producer("a"), self.member()
        self.until(lambda: first.held == set(range(PARTITIONS)))
        old = first.intake.group_metadata()
        second = self.member()
        self.until(lambda: len(first.held) == len(second.held) == 2)
        moved = min(second.held)
        producer.begin_transaction()
        with pytest.raises(KafkaException) as raised:
            producer.send_offsets_to_transaction(self.at(moved, 1), old, SECONDS)
        error = raised.value.args[0]
        assert (error.code(), error.txn_requires_abort()) == (KafkaError.ILLEGAL_GENERATION, True)
        producer.abort_transaction(SECONDS)
        producer.begin_transaction()
        producer.send_offsets_to_transaction(self.at(moved, 1), second.intake.group_metadata(), SECONDS)
        producer.commit_transaction(SECONDS)
        assert self.committed(second, moved)[0] == 1

    def test_a_member_that_left_may_not_commit(self) -> None:
        producer, member = self.cluster.producer("a"), self.member()
        self.until(lambda: member.held == set(range(PARTITIONS)))
        old = member.intake.group_metadata()
        member.intake.leave()
        self.members.remove(member)
        producer.begin_transaction()
        with pytest.raises(KafkaException) as raised:
            producer.send_offsets_to_transaction(self.at(0, 1), old, SECONDS)
        error = raised.value.args[0]
        assert (error.code(), error.txn_requires_abort()) == (KafkaError.UNKNOWN_MEMBER_ID, True)
        producer.abort_transaction(SECONDS)
