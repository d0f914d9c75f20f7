"""Queries to Kafka about topics, and the errors of queries that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from schemas.broker_hint import broker_hint
from schemas.settings import KafkaSettings
from telemetry.clock import Clock
from workers.kafka.clients import asking_config
from workers.system.errors import ProcessError

TOPIC_SECONDS = 10.0
COUNT_SECONDS = 60.0
"""Time for which a topic's number of partitions is cached; an operator may add partitions meanwhile."""
_TOPIC_ASKED = 10
_TOPIC_ASK_AGAIN_SECONDS = 0.2


class NoSuchTopic(ProcessError):  # noqa: N818 - it names what is missing
    """A topic that the process reads does not exist."""


class BrokerAway(ProcessError):  # noqa: N818 - it names what is wrong
    """No broker answered when the process started."""


class AccessDenied(ProcessError):  # noqa: N818 - it names what happened
    """A broker answered, but refused the credentials or the request."""


class PropertyRefused(ProcessError):  # noqa: N818 - it names what happened
    """The Kafka client does not know a property of POSTBACK_KAFKA__EXTRA__…, or cannot use the property's value."""

    exit_status = 2


class TopicUnanswered(KafkaException):
    """Kafka did not answer a query about this topic, or refused the query."""

    def __init__(self, topic: str, error: KafkaError) -> None:
        super().__init__(error)
        self.topic = topic


async def topic_ids(kafka: KafkaSettings, topics: Sequence[str]) -> dict[str, str]:
    """Return the UUID of each topic. Raises ProcessError.

    A topic that is created again under an old name has another UUID. A broker may not know a new topic at once, so the
    query for a missing topic is repeated for about two seconds.
    """
    client = _asking(kafka)
    found: dict[str, str] = {}
    for _ in range(_TOPIC_ASKED):
        found |= await known_ids(client, kafka, [name for name in topics if name not in found])
        missing = [name for name in topics if name not in found]
        if not missing:
            return found
        await asyncio.sleep(_TOPIC_ASK_AGAIN_SECONDS)
    raise NoSuchTopic(f"the topic {missing[0]} does not exist; `postback topics create` makes it")


async def known_ids(client: AdminClient, kafka: KafkaSettings, topics: Sequence[str]) -> dict[str, str]:
    """Return the UUIDs of all topics among `topics` that the broker knows. Raises BrokerAway and AccessDenied."""
    asked = _ask_ids(client, topics, TOPIC_SECONDS)
    await asyncio.gather(*map(asyncio.wrap_future, asked.values()), return_exceptions=True)
    try:
        return _ids(asked)
    except TopicUnanswered as error:
        raise unanswered(kafka, error.args[0], f" to the topic {error.topic}") from None


class TopicQuestion:
    """A question for topics' UUIDs. Its client lives exactly as long as the question.

    The client of an answered question may not stay: beside a broker that died, the thread of an idle client was seen
    to turn without a pause and to take a whole core. The client of an open question may not end: its futures would
    never get the answer.
    """

    def __init__(self, config: dict[str, Any], topics: Iterable[str], seconds: float) -> None:
        """`config`: librdkafka properties, as `asking_config` makes them."""
        self._client = AdminClient(config)
        self._asked = _ask_ids(self._client, topics, seconds)

    def done(self) -> bool:
        """Say whether the answer is there, or the question has failed."""
        return all(each.done() for each in self._asked.values())

    def result(self, timeout: float) -> dict[str, str]:
        """Return, within `timeout` seconds, the UUIDs of the topics that the broker knows. Raises TopicUnanswered."""
        wait(self._asked.values(), timeout)
        return _ids(self._asked)


class PartitionCounts:
    """A callable that returns a topic's number of partitions, cached for COUNT_SECONDS."""

    def __init__(self, kafka: KafkaSettings, clock: Clock) -> None:
        self._kafka = kafka
        self._clock = clock
        self._counts: dict[str, tuple[int, float]] = {}

    async def __call__(self, topic: str) -> int:
        """Return the topic's number of partitions. Raises NoSuchTopic, BrokerAway and AccessDenied."""
        count, until = self._counts.get(topic, (0, 0.0))
        if not count or self._clock.monotonic() >= until:
            count = await asyncio.to_thread(self._asked, topic)
            self._counts[topic] = count, self._clock.monotonic() + COUNT_SECONDS
        return count

    def _asked(self, topic: str) -> int:
        try:
            found = _asking(self._kafka).list_topics(topic, TOPIC_SECONDS).topics[topic]
        except KafkaException as error:
            raise unanswered(self._kafka, error.args[0], f" to the topic {topic}") from None
        if found.error is not None and found.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise unanswered(self._kafka, found.error, f" to the topic {topic}")
        if not found.partitions:
            raise NoSuchTopic(f"the topic {topic} does not exist; `postback topics create` makes it")
        return len(found.partitions)


def _ask_ids(client: AdminClient, topics: Iterable[str], seconds: float) -> Mapping[str, Future[Any]]:
    """Ask for the descriptions of these topics, in one request."""
    return client.describe_topics(TopicCollection(list(topics)), request_timeout=seconds)


def _ids(asked: Mapping[str, Future[Any]]) -> dict[str, str]:
    """Return the UUIDs of the topics that the broker knows, from finished futures. Raises TopicUnanswered."""
    found = {}
    for topic, future in asked.items():
        try:
            found[topic] = str(future.result(0).topic_id)
        except TimeoutError:
            raise TopicUnanswered(topic, KafkaError(KafkaError._TIMED_OUT)) from None
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise TopicUnanswered(topic, error.args[0]) from None
    return found


async def topic_names(kafka: KafkaSettings) -> list[str]:
    """Return the topics that the broker lets this client see. Raises ProcessError."""
    client = _asking(kafka)
    try:
        return list((await asyncio.to_thread(client.list_topics, timeout=TOPIC_SECONDS)).topics)
    except KafkaException as error:
        raise unanswered(kafka, error.args[0]) from None


def unanswered(kafka: KafkaSettings, error: KafkaError, to_what: str = "") -> BrokerAway | AccessDenied:
    """Return the error for a failed query: AccessDenied if Kafka refuses access, else BrokerAway."""
    if error.name().endswith("_AUTHORIZATION_FAILED"):
        return AccessDenied(
            f"Kafka refuses access{to_what} ({error.name()}): check POSTBACK_KAFKA__EXTRA__SASL_… and the broker's ACLs"
        )
    return BrokerAway(
        f"Kafka at {kafka.bootstrap_servers} does not answer ({error.name()}); {broker_hint(kafka.bootstrap_servers)}"
    )


def _asking(kafka: KafkaSettings) -> AdminClient:
    """Return a new client for queries. Raises PropertyRefused."""
    try:
        return AdminClient(asking_config(kafka))
    except KafkaException as error:
        reason = error.args[0].str()
        for value in kafka.extra.values():  # any value may be a secret, so remove all values from the reason
            reason = reason.replace(f'"{value.get_secret_value()}"', "…")
        raise PropertyRefused(f"the Kafka client refuses a property of POSTBACK_KAFKA__EXTRA__…: {reason}") from None
