"""Reads committed records of topics from given offsets, without a consumer group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from gateway.view.offsets import TopicPlace
from schemas.settings import KafkaSettings
from telemetry.clock import Deadline, SystemClock
from workers.kafka.clients import asking_config, client_config
from workers.kafka.topics import TopicQuestion

ASK_SECONDS = 5.0
_ASK_AGAIN_SECONDS = 0.2
_CLOCK = SystemClock()


class TopicReader:
    """Reads the given topics, as far as they exist. Methods raise KafkaException. A single thread calls all methods.

    `places` leaves out topics that do not exist. A topic that was created again needs a new reader.
    """

    def __init__(self, kafka: KafkaSettings, topics: Sequence[str]) -> None:
        self._topics = topics
        self._config = asking_config(kafka)
        self._consumer = Consumer(
            {
                "fetch.wait.max.ms": 100,
                "queued.max.messages.kbytes": 16_384,
                **client_config(kafka),
                "group.id": "view",  # the client requires an id, but joins no group and commits no offset
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
            }
        )
        self._ends: set[tuple[str, int]] = set()

    def places(self) -> set[TopicPlace]:
        """Return all partitions of the topics, as Kafka states them now."""
        ids = TopicQuestion(self._config, self._topics, ASK_SECONDS).result(ASK_SECONDS)
        found = set()
        for topic, topic_id in ids.items():
            layout = self._consumer.list_topics(topic, timeout=ASK_SECONDS).topics[topic]
            if layout.error is not None:
                raise KafkaException(layout.error)
            found |= {TopicPlace(topic, topic_id, number) for number in layout.partitions}
        return found

    def first_kept_ms(self, place: TopicPlace) -> int | None:
        """Return the time of a partition's first record in Unix milliseconds.

        The time is 0 if the partition never had a record, and None if the partition has no record left.
        """
        low, high = self._watermarks(TopicPartition(place.topic, place.partition))
        if low >= high:
            return 0 if high == 0 else None
        self.begin({place: low})
        found = self.records(1, ASK_SECONDS)
        return found[0].timestamp()[1] if found else None

    def _watermarks(self, partition: TopicPartition) -> tuple[int, int]:
        """Return a partition's first and next offset; ask again while the partition has no leader for a moment."""
        deadline = Deadline.after(_CLOCK, ASK_SECONDS)
        while True:
            try:
                return self._consumer.get_watermark_offsets(partition, timeout=ASK_SECONDS)
            except KafkaException:
                if deadline.passed:
                    raise
                _CLOCK.sleep(_ASK_AGAIN_SECONDS)

    def begin(self, offsets: Mapping[TopicPlace, int]) -> None:
        """Read from these offsets on."""
        self._ends.clear()
        self._consumer.assign([TopicPartition(p.topic, p.partition, offset) for p, offset in offsets.items()])

    def records(self, most: int, seconds: float) -> list[Any]:
        """Wait for a record, and return it with the records that have already arrived."""
        found: list[Any] = []
        for message in [*self._consumer.consume(1, seconds), *self._consumer.consume(most - 1, 0)]:
            error = message.error()
            place = str(message.topic()), int(message.partition() or 0)
            if error is None:
                found.append(message)
                self._ends.discard(place)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._ends.add(place)
            elif error.fatal() or error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise KafkaException(error)
            # Other errors mean that the broker is away; the client reconnects by itself.
        return found

    def has_ended(self, places: set[TopicPlace]) -> bool:
        """Return whether the reading has come to the end of these partitions."""
        return all((place.topic, place.partition) in self._ends for place in places)

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()
