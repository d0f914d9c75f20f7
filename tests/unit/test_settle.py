"""What is committed, swept and left behind, against a client that does what it is told."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.clocks import HandClock
from workers.stage import settle
from workers.stage.partition import Partition
from workers.stage.progress import Progress
from workers.stage.record import Output
from workers.stage.settle import Batch, IdentityShared, Settler, State


class Client:
    """A transactional producer: what it was asked for, in order."""

    sizes: dict[str, list[int]]
    """The leaders of each topic's partitions."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.asked: list[str] = []
        self.unsent = 0
        self.sizes = {"results": [1, 1]}
        self.sent = threading.Event()
        self.sent.set()

    def init_transactions(self, timeout: float) -> None:
        self.asked.append("init")

    def begin_transaction(self) -> None:
        self.asked.append("begin")

    def produce(self, topic: str, value: bytes | None, key: bytes | None, *, partition: int, headers: Any) -> None:
        known = partition < len(self.sizes.get(topic, ()))
        if not known:
            raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))
        self.asked.append(f"{topic}[{partition}] {'sweep' if key == settle.SWEEP_KEY else 'output'}")
        self.unsent += 1

    def send_offsets_to_transaction(self, positions: list[Any], metadata: Any, timeout: float) -> None:
        self.sent.wait(10)
        self.asked.append("offsets " + " ".join(f"{p.topic}[{p.partition}]@{p.offset}" for p in positions))

    def commit_transaction(self, timeout: float) -> None:
        self.asked.append("commit")

    def abort_transaction(self, timeout: float) -> None:
        self.asked.append("abort")

    def list_topics(self, topic: str, timeout: float) -> Any:
        leaders = self.sizes.get(topic)
        error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART) if leaders is None else None
        partitions = {number: SimpleNamespace(leader=leader) for number, leader in enumerate(leaders or ())}
        return SimpleNamespace(topics={topic: SimpleNamespace(error=error, partitions=partitions)})

    def __len__(self) -> int:
        """What is not yet sent; a poll sends it."""
        return self.unsent

    def poll(self, timeout: float) -> int:
        self.unsent = 0
        return 0

    def purge(self) -> None:
        self.asked.append("purge")


@pytest.fixture
def settler(monkeypatch: pytest.MonkeyPatch) -> Settler:
    monkeypatch.setattr(settle, "Producer", Client)
    return Settler({}, "stage.a", lambda: "member", SystemClock(), Metrics())


@pytest.fixture
def partition() -> Partition:
    partition = Partition("requests", 0, 1, 0.0)
    partition.open(Progress(5), 0)
    for offset in (5, 6):
        partition.ledger.take(offset)
    return partition


def client(settler: Settler) -> Client:
    found: Any = settler._producer
    assert isinstance(found, Client)
    return found


def batch_of(partition: Partition, offset: int, topic: str = "results") -> Batch:
    batch = Batch(outputs=[Output(topic, b"done")])
    batch.offsets[partition].append(offset)
    return batch


def repaired(settler: Settler, *held: Partition) -> None:
    """Go on until it is ready, as the stage does."""
    while settler.state is not State.READY:
        settler.repair(held)
        if settler.state is State.REREADING:
            settler.reread()


def landed(settler: Settler) -> Batch | None:
    """Wait for the transaction that is under way."""
    batch = None
    while settler.state is State.SETTLING:
        batch = settler.settled()
    return batch


def test_a_topic_is_swept_before_it_is_written_to_and_only_once(settler: Settler, partition: Partition) -> None:
    repaired(settler)
    settler.settle(batch_of(partition, 5))
    assert settler.state is State.SWEEPING
    repaired(settler, partition)
    swept = ["init", "begin", "results[0] sweep", "results[1] sweep", "offsets requests[0]@5", "abort"]
    assert client(settler).asked == swept
    for offset in (5, 6):
        batch = batch_of(partition, offset)
        settler.settle(batch)
        assert landed(settler) is batch
        partition.settle([offset], batch.progress[partition])
    settled = ["begin", "results[0] output", "offsets requests[0]@6", "commit"]
    assert client(settler).asked[len(swept) :] == [*settled, *settled[:2], "offsets requests[0]@7", "commit"]


def test_what_may_be_written_to_is_swept_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "Producer", Client)
    settler = Settler({}, "stage.a", lambda: "member", SystemClock(), Metrics(), ["results", "not there"])
    repaired(settler)
    assert client(settler).asked == ["init", "begin", "results[0] sweep", "results[1] sweep", "abort"]


def test_offsets_of_partitions_that_were_never_opened_are_swept_once_more(
    settler: Settler, partition: Partition
) -> None:
    unopened = Partition("requests", 1, 1, 0.0)
    repaired(settler, unopened)
    settler.settle(batch_of(partition, 5))
    repaired(settler, unopened, partition)
    assert [asked for asked in client(settler).asked if asked.startswith("offsets")] == [
        "offsets requests[1]@0",
        "offsets requests[0]@5",
    ]


def test_a_topic_that_is_gone_is_a_failure_that_rests(settler: Settler, partition: Partition) -> None:
    settler._clock = HandClock()  # on a busy machine a rest of 10 ms is over before anybody looks
    repaired(settler, partition)
    settler.settle(batch_of(partition, 5, "gone"))
    repaired(settler, partition)
    settler.settle(batch_of(partition, 5, "gone"))
    assert (settler.state, settler.failures, settler.resting) == (State.ABORTING, 1, True)


def test_nothing_is_held_open_for_a_partition_without_a_leader(settler: Settler, partition: Partition) -> None:
    settler._clock = HandClock()
    repaired(settler, partition)
    first = client(settler)
    first.sizes["results"] = [1, -1]
    settler.settle(batch_of(partition, 5))
    asked = len(first.asked)
    settler.repair([partition])
    assert (settler.state, settler.resting) == (State.REBUILDING, True)
    assert set(first.asked[asked:]) <= {"purge"}


def test_a_call_that_is_overdue_is_never_followed_by_its_commit(
    settler: Settler, partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    repaired(settler, partition)
    settler.settle(batch_of(partition, 5))
    repaired(settler, partition)
    monkeypatch.setattr(settle, "SEND_SECONDS", -0.9)  # and the margin of a second
    first = client(settler)
    first.sent.clear()
    settler.settle(batch_of(partition, 5))
    assert settler.carries(partition)
    assert landed(settler) is None
    assert (settler.state, settler.carries(partition)) == (State.REBUILDING, False)
    asked = len(first.asked)
    first.sent.set()
    while not any(each.startswith("offsets") for each in first.asked[asked:]):
        threading.Event().wait(0.01)
    threading.Event().wait(0.05)
    assert "commit" not in first.asked


def test_an_identity_that_is_shared_is_named_whatever_the_client_raises_while_it_logs(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fatal error in a poll that also brings a line for the log comes as another exception; see `Settler._poll`."""

    class Fenced(Client):
        def poll(self, timeout: float) -> int:
            super().poll(timeout)
            raise AttributeError("'RootLogger' object has no attribute 'log'")

        def abort_transaction(self, timeout: float) -> None:
            raise KafkaException(KafkaError(KafkaError._FENCED, "another one came", fatal=True))

    monkeypatch.setattr(settle, "Producer", Fenced)
    settler = Settler({}, "stage.a", lambda: "member", SystemClock(), Metrics(), outputs=["results"])
    settler.listen()
    with pytest.raises(IdentityShared, match="POSTBACK_REPLICA"):
        repaired(settler, partition)
