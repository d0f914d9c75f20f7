"""The consumer's client refuses to pause or resume fetches, or has given up."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from workers.stage.intake import GroupIntake, GroupRefused


def intake_over(consumer: Any) -> GroupIntake:
    return GroupIntake({}, "group", ["requests"], on_error=lambda _: None, make_consumer=lambda _: consumer)


class Unseekable:
    """A consumer that is still setting up one of its fetches."""

    def __init__(self) -> None:
        self.paused: list[TopicPartition] = []

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition("requests", 0), TopicPartition("requests", 1)]

    def seek(self, partition: TopicPartition) -> None:
        raise KafkaException(KafkaError(KafkaError._STATE))

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.paused += partitions


def test_a_refused_pause_is_reported_and_pauses_nothing() -> None:
    consumer: Any = Unseekable()
    intake = intake_over(consumer)
    assert not intake.flow([("requests", 0)], [("requests", 1, 7)])
    assert consumer.paused == []


class Ended:
    """A consumer whose client gave up: librdkafka reports this error once, with a code of its own and no fatal flag."""

    def poll(self, timeout: float) -> Any:
        return self

    def consume(self, count: int, timeout: float) -> list[Any]:
        return []

    def error(self) -> KafkaError:
        return KafkaError(KafkaError._FATAL, "ConsumerGroupHeartbeat fatal error: Broker: API version not supported")


def test_a_client_that_gave_up_ends_the_stage_and_the_text_says_what_an_old_kafka_lacks() -> None:
    """A client that gave up returns no more records. An earlier version of the worker kept polling in vain."""
    consumer: Any = Ended()
    intake = intake_over(consumer)
    with pytest.raises(GroupRefused, match=r"API version not supported.*4\.0 or newer") as refused:
        intake.consume(10, 0.1)
    assert not isinstance(refused.value, KafkaException)
