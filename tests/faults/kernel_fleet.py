"""Shared helpers of the kernel's fault tests: load, kernel processes to kill, and a reader that counts results."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from bench.committed import committed_records
from producers.connection import admin_client
from schemas.settings import KafkaSettings
from tests.messages import value_of
from tests.product import eventually

PROGRAM = Path(__file__).with_name("stage_process.py")


@dataclass
class StageProcesses:
    """The kernel processes of one fleet; a process has the name of its replica."""

    kafka: KafkaSettings
    logs: Path
    window: int = 200
    drain_seconds: float = 10.0
    sick: set[str] = field(default_factory=set)
    """Replicas whose engine dies at every record."""
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, *replicas: str) -> None:
        for replica in replicas:
            told = {
                "kafka": self.kafka.model_dump(mode="json"),
                "replica": replica,
                "window": self.window,
                "drain_seconds": self.drain_seconds,
                "sick": replica in self.sick,
                "listening": str(self._listening(replica)),
            }
            self._listening(replica).unlink(missing_ok=True)
            with (self.logs / f"{replica}.log").open("ab") as log:
                self.running[replica] = subprocess.Popen([sys.executable, PROGRAM, json.dumps(told)], stderr=log)

    def send(self, replica: str, number: signal.Signals) -> None:
        self.running[replica].send_signal(number)

    def kill(self, replica: str) -> None:
        process = self.running.pop(replica)
        process.kill()
        process.wait()

    def terminate(self, replica: str) -> int:
        """Send SIGTERM once the process listens for it. Returns the exit code, after the drain."""
        eventually(self._listening(replica).exists, 120, f"{replica} does not listen for SIGTERM")
        process = self.running.pop(replica)
        process.terminate()
        return process.wait(60)

    def _listening(self, replica: str) -> Path:
        """The file that the replica creates when it listens for SIGTERM."""
        return self.logs / f"{replica}.listening"

    def log(self, replica: str) -> str:
        return (self.logs / f"{replica}.log").read_text()

    def keep_alive(self, replica: str) -> bool:
        """Restart a replica if it has died, as an orchestrator would. True if the replica had died."""
        if self.running[replica].poll() is None:
            return False
        self.start(replica)
        return True

    def end(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
        for process in self.running.values():
            process.wait()


@dataclass
class Ledgers:
    """Queries to Kafka about a fleet: outputs, dead letters, lag."""

    kafka: KafkaSettings

    def submit(self, jobs: Iterable[dict[str, Any]], partitions: int = 4) -> int:
        # Without idempotence, the producer would repeat a request that a frozen broker answers late, and write jobs
        # twice.
        producer = Producer({**self.kafka.client_config(), "linger.ms": 20, "enable.idempotence": True})
        count, refused = 0, list[KafkaError]()

        def told(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                refused.append(error)

        for count, job in enumerate(jobs, 1):
            place = self.kafka.topics.requests(), json.dumps(job).encode()
            producer.produce(*place, partition=count % partitions, on_delivery=told)
            producer.poll(0)
        assert producer.flush(60) == 0
        assert refused == []
        return count

    def read(self, topic: str) -> list[Message]:
        """Every record that a read_committed consumer can see now."""
        return committed_records(self.kafka.client_config(), topic)

    def results(self) -> Counter[str]:
        return Counter(value_of(message).decode() for message in self.read(self.kafka.topics.results))

    def lag(self, group: str = "inference") -> int:
        """Number of request records at or above the group's committed offsets."""
        topic = self.kafka.topics.requests()
        consumer = Consumer({**self.kafka.client_config(), "group.id": "lag"})
        ends = {
            number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=20)[1]
            for number in consumer.list_topics(topic, timeout=20).topics[topic].partitions
        }
        consumer.close()
        committed = {place.partition: place.offset for place in self.progress(group)}
        return sum(end - max(0, committed.get(number, 0)) for number, end in ends.items())

    def progress(self, group: str = "inference") -> list[TopicPartition]:
        """The group's committed offsets in the requests' topic, with their metadata."""
        admin = AdminClient(self.kafka.client_config())
        asked = ConsumerGroupTopicPartitions(f"{self.kafka.topic_prefix}{group}")
        found = next(iter(admin.list_consumer_group_offsets([asked]).values())).result(20).topic_partitions
        return [place for place in found if place.topic == self.kafka.topics.requests()]

    def commit(self, progress: list[TopicPartition], group: str = "inference") -> None:
        """Commit this progress for a group without members."""
        admin = AdminClient(self.kafka.client_config())
        asked = ConsumerGroupTopicPartitions(f"{self.kafka.topic_prefix}{group}", progress)
        written = next(iter(admin.alter_consumer_group_offsets([asked]).values())).result(20)
        assert [place.error for place in written.topic_partitions] == [None] * len(progress)

    def remove_before(self, offset: int) -> None:
        """Delete the records below `offset` from the requests' first partition, as retention does."""
        admin = AdminClient(self.kafka.client_config())
        asked = TopicPartition(self.kafka.topics.requests(), 0, offset)
        admin.delete_records([asked])[asked].result(20)

    def set_session(self, seconds: int, group: str = "inference") -> None:
        """Set the group's session timeout: a member that is silent for longer is expelled."""
        resource = ConfigResource(
            ConfigResourceType.GROUP,
            f"{self.kafka.topic_prefix}{group}",
            {"consumer.session.timeout.ms": str(1000 * seconds)},
        )
        with admin_client(self.kafka) as admin:
            answer = admin.alter_configs([resource], raise_on_unknown=False)
        assert set(answer["group"].values()) == {"OK"}

    def wait_for_results(self, jobs: int, seconds: float) -> None:
        eventually(lambda: len(self.results()) >= jobs, seconds, lambda: f"fewer than {jobs} results: {self.state()}")

    def state(self) -> str:
        """Return as text the number of results, the lag, and how far an open transaction hides results from readers."""
        results, topic = len(self.results()), self.kafka.topics.results
        with admin_client(self.kafka) as admin:
            places = [partition["partition_index"] for partition in admin.describe_topics([topic])[0]["partitions"]]
        isolations = {}
        for isolation in ("read_committed", "read_uncommitted"):
            consumer = Consumer({**self.kafka.client_config(), "group.id": "state", "isolation.level": isolation})
            isolations[isolation] = [consumer.get_watermark_offsets(TopicPartition(topic, n), 20)[1] for n in places]
            consumer.close()
        return f"{results} results, lag {self.lag()}, ends of the results' partitions {isolations}"

    def assert_each_exactly_once(self, jobs: int) -> None:
        """Assert exactly one result for each of the ids 0 to jobs - 1, and no lag."""
        self.assert_none_is_lost(jobs)
        doubled = {job: count for job, count in self.results().items() if count > 1}
        requests = len(self.read(self.kafka.topics.requests()))
        assert doubled == {}, f"{requests} requests have more than one result: {doubled}"

    def assert_none_is_lost(self, jobs: int) -> None:
        """Assert at least one result for each of the ids 0 to jobs - 1, and no lag."""
        assert set(self.results()) == {str(number) for number in range(jobs)}
        eventually(lambda: self.lag() == 0, 60, "the lag does not return to 0")
