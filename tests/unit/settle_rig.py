"""A settler with a client that fails no call and records all calls."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from telemetry.clock import Clock, SystemClock
from telemetry.metrics import Metrics
from workers.stage.partition import Partition
from workers.stage.record import Output
from workers.stage.settler import SWEEP_KEY, Batch, Settler, SettlerState


class Client:
    """A transactional producer that records its calls in order."""

    sizes: dict[str, list[int]]
    """Maps a topic to the leader of each of its partitions."""
    copies = 1

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
        self.asked.append(f"{topic}[{partition}] {'sweep' if key == SWEEP_KEY else 'output'}")
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
        replicas = list(range(self.copies))
        partitions = {n: SimpleNamespace(leader=leader, replicas=replicas) for n, leader in enumerate(leaders or ())}
        return SimpleNamespace(topics={topic: SimpleNamespace(error=error, partitions=partitions)})

    def __len__(self) -> int:
        """The number of unsent records; a poll sends them."""
        return self.unsent

    def poll(self, timeout: float) -> int:
        self.unsent = 0
        return 0

    def purge(self) -> None:
        self.asked.append("purge")


class WatchedSettler(Settler):
    """A settler with clients of one class, kept in order of creation."""

    def __init__(self, kind: type[Client] = Client, outputs: Sequence[str] = (), clock: Clock | None = None) -> None:
        self.clients: list[Client] = []

        def make_producer(config: dict[str, Any]) -> Any:
            self.clients.append(kind(config))
            return self.clients[-1]

        super().__init__({}, "stage.a", lambda: "member", clock or SystemClock(), Metrics(), outputs, make_producer)


def client(settler: WatchedSettler) -> Client:
    """The settler's current client."""
    return settler.clients[-1]


def batch_of(partition: Partition, offset: int, topic: str = "results") -> Batch:
    batch = Batch(outputs=[Output(topic, b"done")])
    batch.offsets[partition].append(offset)
    return batch


def repaired(settler: Settler, *held: Partition) -> None:
    """Repair the settler until it is ready, as the stage does."""
    while settler.state is not SettlerState.READY:
        settler.repair(held)
        if settler.state is SettlerState.REREADING:
            settler.reread()


def landed(settler: Settler) -> Batch | None:
    """Wait for the current transaction; return its batch."""
    batch = None
    while settler.state is SettlerState.SETTLING:
        batch = settler.settled()
    return batch
