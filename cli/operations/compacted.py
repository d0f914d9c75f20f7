"""Writes facts to the compacted topics that the fleet's processes read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer

from producers.connection import abandon, connect, kafka_errors_translated, partition_counts
from schemas.settings import KafkaSettings

_SENT_SECONDS = 30.0


def put_facts(settings: KafkaSettings, topic: str, facts: Sequence[tuple[bytes, bytes | None]]) -> None:
    """Publish facts of a topic to all processes.

    Each fact is a key with a value; the value None withdraws the fact of that key. Returns when Kafka has the records.
    Raises ProducerError.
    """
    partition_counts(settings, [topic])  # sending to a missing topic would fail only after a minute
    producer: Any = connect(KafkaProducer, settings, acks="all", allow_auto_create_topics=False)
    try:
        with kafka_errors_translated(settings):
            sent = [producer.send(topic, value=value, key=key, partition=0) for key, value in facts]
            for each in sent:
                each.get(timeout=_SENT_SECONDS)
    finally:
        abandon(producer)
