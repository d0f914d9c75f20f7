"""How fetching is paused and resumed, where the client refuses."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from workers.stage.intake import GroupIntake


class Unseekable:
    """A consumer one of whose fetches is still being set up."""

    def __init__(self) -> None:
        self.paused: list[TopicPartition] = []

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition("requests", 0), TopicPartition("requests", 1)]

    def seek(self, partition: TopicPartition) -> None:
        raise KafkaException(KafkaError(KafkaError._STATE))

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.paused += partitions


def test_nothing_is_paused_where_the_caller_is_told_that_it_did_not_work() -> None:
    consumer: Any = Unseekable()
    intake = GroupIntake.__new__(GroupIntake)
    intake._consumer = consumer
    assert not intake.flow([("requests", 0)], [("requests", 1, 7)])
    assert consumer.paused == []
