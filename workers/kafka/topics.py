"""Questions to Kafka about its topics, asked while a process starts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from schemas.settings import KafkaSettings
from workers.kafka.clients import asking_config
from workers.system.errors import ProcessError

TOPIC_SECONDS = 10.0
_TOPIC_ASKED = 10
_TOPIC_ASK_AGAIN_SECONDS = 0.2


class NoSuchTopic(ProcessError):  # noqa: N818 - it names what is missing
    """A topic that the process reads does not exist."""


class BrokerAway(ProcessError):  # noqa: N818 - it names what is wrong
    """No broker answered when the process started."""


class AccessDenied(ProcessError):  # noqa: N818 - it names what happened
    """A broker answered, and refused who we are or what we asked."""


class PropertyRefused(ProcessError):  # noqa: N818 - it names what happened
    """A property of POSTBACK_KAFKA__EXTRA__… that the Kafka client does not know, or cannot use."""


async def topic_ids(kafka: KafkaSettings, topics: Sequence[str]) -> dict[str, str]:
    """The UUID of each topic; a topic that is made anew under an old name has another. Raises ProcessError.

    A topic that was made a moment ago may be unknown to the broker that is asked, so it is asked again for a while.
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
    """The UUIDs of those that are known. Raises BrokerAway and AccessRefused."""
    asked = client.describe_topics(TopicCollection(list(topics)), request_timeout=TOPIC_SECONDS)
    found = {}
    for name, future in asked.items():
        try:
            found[name] = str((await asyncio.wrap_future(future)).topic_id)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise unanswered(kafka, error.args[0], f" to the topic {name}") from None
    return found


async def topic_names(kafka: KafkaSettings) -> list[str]:
    """The topics that there are, as far as we may know of them. Raises ProcessError."""
    client = _asking(kafka)
    try:
        return list((await asyncio.to_thread(client.list_topics, timeout=TOPIC_SECONDS)).topics)
    except KafkaException as error:
        raise unanswered(kafka, error.args[0]) from None


def unanswered(kafka: KafkaSettings, error: KafkaError, to_what: str = "") -> BrokerAway | AccessDenied:
    """Why Kafka did not tell what a process that starts has asked: it is not there, or it may not tell."""
    if error.name().endswith("_AUTHORIZATION_FAILED"):
        return AccessDenied(
            f"Kafka refuses access{to_what} ({error.name()}): check POSTBACK_KAFKA__EXTRA__SASL_… and the broker's ACLs"
        )
    return BrokerAway(
        f"Kafka at {kafka.bootstrap_servers} does not answer ({error.name()}); "
        "set POSTBACK_KAFKA__BOOTSTRAP_SERVERS, or start one with `postback broker start`"
    )


def _asking(kafka: KafkaSettings) -> AdminClient:
    """A client that asks. Raises PropertyRefused."""
    try:
        return AdminClient(asking_config(kafka))
    except KafkaException as error:
        reason = error.args[0].str()
        for value in kafka.extra.values():  # any of which may be a secret
            reason = reason.replace(f'"{value.get_secret_value()}"', "…")
        raise PropertyRefused(f"the Kafka client refuses a property of POSTBACK_KAFKA__EXTRA__…: {reason}") from None
