"""What a topic holds for a read_committed reader: how tests, benches and the demo count what is there exactly once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition


def committed_records(connection: Mapping[str, Any], topic: str, timeout_seconds: float = 20.0) -> list[Message]:
    """Every record from the topic's start to the end that it has when it is reached, partition by partition.

    `connection` are librdkafka properties. `timeout_seconds` bounds the question for the topic's partitions.
    """
    consumer = Consumer(
        {
            **connection,
            "group.id": "reader",  # asked for by the client; nothing is joined and nothing is committed
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
