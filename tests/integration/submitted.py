"""Records that a run of `postback submit` left on a topic."""

from __future__ import annotations

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from schemas.settings import KafkaSettings


def records_of(fleet: KafkaSettings, topic: str) -> list[ConsumerRecord]:
    """All records in a topic now."""
    consumer = KafkaConsumer(bootstrap_servers=fleet.bootstrap_servers, group_id=None)
    partitions = [TopicPartition(topic, number) for number in range(fleet.partitions)]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends, found = consumer.end_offsets(partitions), []
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        found += [record for records in consumer.poll(timeout_ms=200).values() for record in records]
    consumer.close()
    return found
