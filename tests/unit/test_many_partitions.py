"""Topics with many partitions, against a Kafka that accepts 10,000 partitions in a request, like the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kafka import errors as kafka_errors

from operators import topics as producers_topics
from operators.topics import create_topics
from producers.errors import RequestRefused
from schemas.settings import KafkaSettings

MOST = 10_000
"""`ReplicationControlManager.MAX_PARTITIONS_PER_BATCH` of Kafka 4.3."""


class Admin:
    """The part of kafka-python's admin client that `create_topics` uses."""

    def __init__(self) -> None:
        self.partitions: dict[str, int] = {}
        self.waits_ms: list[int] = []
        self.is_slow = False

    def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        return [
            {"name": name, "error_code": 0, "partitions": [{"replica_nodes": [1]}] * self.partitions[name]}
            for name in names
            if name in self.partitions
        ]

    def describe_cluster(self) -> dict[str, Any]:
        return {"brokers": [{"node_id": 1}]}

    def create_topics(self, asked: dict[str, dict[str, Any]], raise_errors: bool) -> dict[str, Any]:
        self._take({name: each["num_partitions"] for name, each in asked.items()})
        return {"topics": [{"name": name, "error_code": 0, "error_message": None} for name in asked]}

    def create_partitions(self, asked: dict[str, int]) -> None:
        self._take(asked)

    def _take(self, asked: dict[str, int]) -> None:
        if sum(asked.values()) > MOST:
            raise kafka_errors.PolicyViolationError("Excessively large number of partitions per request.")
        self.partitions |= asked

    def wait_for_topics(self, names: list[str], timeout_ms: int = MOST) -> None:
        self.waits_ms.append(timeout_ms)
        if self.is_slow:
            raise kafka_errors.KafkaTimeoutError


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> Admin:
    fake = Admin()

    @contextmanager
    def admin_client(settings: KafkaSettings) -> Iterator[Admin]:
        yield fake

    differences: Callable[..., Any] = lambda *_: ([], [])  # noqa: E731 - another test covers configs
    monkeypatch.setattr(producers_topics, "admin_client", admin_client)
    monkeypatch.setattr(producers_topics, "config_differences", differences)
    return fake


@pytest.mark.parametrize("partitions", [1, 555, 556, 2000, MOST])
def test_each_topic_may_have_as_many_partitions_as_kafka_takes(admin: Admin, partitions: int) -> None:
    settings = KafkaSettings(partitions=partitions)
    wanted = {spec.name: spec.partitions for spec in settings.topics.specs(partitions)}
    assert create_topics(settings).created == list(wanted)
    assert admin.partitions == wanted
    assert min(admin.waits_ms) >= 10 * sum(wanted.values())


def test_a_kafka_that_takes_too_long_to_set_up_new_partitions_is_not_one_that_does_not_answer(admin: Admin) -> None:
    admin.is_slow = True
    with pytest.raises(RequestRefused, match=r"are created.*run this command again"):
        create_topics(KafkaSettings(partitions=20))


def test_partitions_are_also_added_topic_by_topic(admin: Admin) -> None:
    create_topics(KafkaSettings(partitions=10))
    report = create_topics(KafkaSettings(partitions=2000), raise_partitions=True)
    assert {difference.found for difference in report.raised} == {10}
    assert max(admin.partitions.values()) == 2000
