"""The relay's side of Kafka: a transaction carries the records of some rows and the position after them.

After every error, the relay makes a new producer. The new producer's `init_transactions` fences older relays and ends
the open transaction; the committed position then shows if Kafka committed that transaction. The relay sweeps the topics
before it reads the position, because an ended transaction may leave records that block readers (see
`workers.stage.settler`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count as counted
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from gateway.accept.outbox import Header, unpacked
from gateway.accept.position import PositionReader
from producers.sharding import Partitioner
from schemas.settings import KafkaSettings
from schemas.trust import TrustSecrets
from telemetry.clock import Clock
from workers.kafka.clients import client_config
from workers.stage.producer import MakeProducer, TransactionalProducer
from workers.stage.record import Output
from workers.stage.settler import SWEEP_KEY
from workers.stage.sweep import LeaderMissing, Sweeps


class RecordOutlet:
    """Puts rows of the outbox on Kafka. Methods raise KafkaException. A single thread calls all methods."""

    def __init__(
        self,
        kafka: KafkaSettings,
        store: str,
        clock: Clock,
        trust: TrustSecrets | None = None,
        make_producer: MakeProducer = Producer,
    ) -> None:
        """`store` is the store's UUID; all relays of one store use the same transactional.id.

        `trust` has the secrets by which the tenants of jobs are signed.
        """
        self._trust = trust
        names = kafka.topics
        self._config = client_config(kafka)
        self._clock = clock
        self._make_producer = make_producer
        self._reader = PositionReader(kafka, store)
        self._sweeps = Sweeps((*names.requests_of(None), names.batch_requests, names.control, names.events))
        self._partitions: dict[str, int] = {}
        self._written: frozenset[str] = frozenset()
        self._partitioner = Partitioner()
        self._turn = counted()
        self._producer: TransactionalProducer | None = None

    def open(self) -> int | None:
        """Fence older relays, end their transaction, and return the committed position; None if there is none."""
        self._retire()
        self._producer = TransactionalProducer(self._config, self._reader.group, self._clock, self._make_producer)
        self._producer.init()
        self._partitions.clear()
        self._sweeps.doubt(self._written)
        self._sweep(self._producer)
        return self._reader.read()

    def put(self, rows: Sequence[Any], position: int) -> None:
        """Commit the records of rows of `outbox`, and the position after them."""
        assert self._producer is not None  # noqa: S101 - `open` is called first
        topics = frozenset(row.topic for row in rows)
        if self._sweeps.need(topics):
            self._sweep(self._producer)
        self._written = topics
        self._producer.begin()
        for row in rows:
            output = Output(row.topic, row.value, row.record_key, self._headers(row))
            self._producer.produce(output, self._partition(row))
        self._producer.send_offsets(self._reader.at(position), self._reader.group_metadata())
        self._producer.commit()
        self._written = frozenset()

    def _headers(self, row: Any) -> list[Header]:
        """Return a row's headers. A row with a shard is a job, whose tenant is signed with the newest secret."""
        headers = unpacked(row.headers)
        if self._trust is None or row.shard is None:
            return headers
        signed = self._trust.signed(row.shard, row.record_key.decode(), row.value)
        names = {name for name, _ in signed}
        return [*(header for header in headers if header[0] not in names), *signed]

    def listen(self) -> None:
        """Write the client's log lines."""
        if self._producer is not None:
            self._producer.poll(0)

    def close(self) -> None:
        """Disconnect."""
        self._retire()
        self._reader.close()

    def _retire(self) -> None:
        if self._producer is not None:
            self._producer.retire()
            self._producer = None

    def _sweep(self, producer: TransactionalProducer) -> None:
        """Write to each partition that may hold records of an unfinished transaction, send an offset, and abort.

        The abort also ends the unfinished transaction, whose records and offsets would otherwise block readers.
        """
        try:
            self._sweeps.plan({topic: producer.layout(topic) for topic in self._sweeps.owed})
        except LeaderMissing as missing:
            text = f"a partition of {missing.topic} has no leader"
            raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE, text)) from None
        is_last = False
        while not is_last:
            places = self._sweeps.step(0)
            is_last = self._sweeps.is_last(places)
            producer.begin()
            for topic, number in places:
                producer.produce(Output(topic, None, SWEEP_KEY), number)
            producer.wait_until_written()
            if is_last:
                producer.send_offsets(self._reader.at(0), self._reader.group_metadata())
            producer.abort()
            self._sweeps.done(places)

    def _partition(self, row: Any) -> int:
        """Return the partition for a row.

        The row's shard or key decides; a row with neither gets the next partition in turn.
        """
        count = self._count(row.topic)
        if row.shard is not None:
            return self._partitioner.partition(row.topic, row.shard, count, row.value)
        if row.record_key is not None:
            from kafka.partitioner.default import murmur2  # imports all of kafka-python, which few gateways need

            hashed: int = murmur2(row.record_key) & 0x7FFFFFFF  # Java's producer chooses the same partition
            return hashed % count
        return next(self._turn) % count

    def _count(self, topic: str) -> int:
        assert self._producer is not None  # noqa: S101 - `open` is called first
        if topic not in self._partitions:
            count = self._producer.layout(topic).partitions
            if count == 0:
                text = f"the topic {topic} does not exist; `postback topics create` makes it"
                raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, text))
            self._partitions[topic] = count
        return self._partitions[topic]
