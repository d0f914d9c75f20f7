"""Reads the committed records of a topic (read_committed).

With `read_committed`, tests, benches and the demo check that each result is written exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition


def committed_records(connection: Mapping[str, Any], topic: str, timeout_seconds: float = 20.0) -> list[Message]:
    """Return the records of all partitions. Each partition is read from its start to its end.

    `connection` are librdkafka properties. `timeout_seconds` limits the request for the topic's partitions.
    """
    consumer = Consumer(
        {
            **connection,
            # The client requires an id, but this consumer joins no group and commits nothing.
            "group.id": "reader",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    try:
        unread = set(consumer.list_topics(topic, timeout=timeout_seconds).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in unread])
        found: list[Message] = []
        while unread:
            for message in consumer.consume(1000, 0.1):
                error = message.error()
                if error is None:
                    found.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    unread.discard(message.partition())
        return found
    finally:
        consumer.close()
