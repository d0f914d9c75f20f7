"""UUIDs of topics: a stage waits for them on its thread, a process on its event loop, with the same outcome."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from schemas.settings import KafkaSettings
from workers.kafka import topics
from workers.kafka.topics import AccessDenied, BrokerAway, KafkaTopicIds, TopicUnanswered, known_ids

REFUSED = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
TIMED_OUT = KafkaError(KafkaError._TIMED_OUT)


class Cluster:
    """A cluster that answers for a topic with the UUID or error in `answers`, or never if `answers` lacks the topic."""

    def __init__(self, **answers: str | KafkaError) -> None:
        self._answers = answers

    def describe_topics(self, asked: Any, request_timeout: float) -> dict[str, Future[Any]]:
        futures: dict[str, Future[Any]] = {name: Future() for name in asked.topic_names}
        for name, future in futures.items():
            answer = self._answers.get(name)
            if isinstance(answer, KafkaError):
                future.set_exception(KafkaException(answer))
            elif answer is not None:
                future.set_result(SimpleNamespace(topic_id=answer))
        return futures


def on_its_thread(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, *names: str) -> dict[str, str]:
    monkeypatch.setattr(topics, "AdminClient", lambda config: cluster)
    return KafkaTopicIds({})(names, 0.01)


def on_its_loop(cluster: Any, *names: str) -> dict[str, str]:
    return asyncio.run(known_ids(cluster, KafkaSettings(), names))


def test_a_topic_that_the_broker_does_not_know_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(requests="one", results="two", gone=KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
    found = {"requests": "one", "results": "two"}
    assert on_its_thread(cluster, monkeypatch, "requests", "gone", "results") == found
    assert on_its_loop(cluster, "requests", "gone", "results") == found


@pytest.mark.parametrize(("error", "on_loop"), [(REFUSED, AccessDenied), (TIMED_OUT, BrokerAway)])
def test_an_error_names_its_topic(error: KafkaError, on_loop: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(requests="one", results=error)
    with pytest.raises(TopicUnanswered) as told:
        on_its_thread(cluster, monkeypatch, "requests", "results")
    assert (told.value.topic, told.value.args[0].code()) == ("results", error.code())
    with pytest.raises(on_loop):
        on_its_loop(cluster, "requests", "results")


def test_the_kafka_thread_waits_no_longer_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TopicUnanswered) as told:
        on_its_thread(Cluster(requests="one"), monkeypatch, "requests", "never answered")
    assert (told.value.topic, told.value.args[0].code()) == ("never answered", KafkaError._TIMED_OUT)
