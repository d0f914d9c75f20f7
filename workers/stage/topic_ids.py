"""Topics by their UUIDs: a topic that is deleted and made anew under its name is another topic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from confluent_kafka import KafkaError, KafkaException

from workers.stage.progress import topic_mark


class TopicMadeAnew(Exception):  # noqa: N818 - it names what happened
    """A topic was deleted and made anew. This process holds progress and identities of the old one."""

    def __init__(self, topic: str) -> None:
        super().__init__(
            f"the topic {topic} was deleted and made anew while this process ran; it ends, so that the next one begins "
            "with the new topic. Where nothing restarts it, start it again"
        )
        self.topic = topic


class TopicIds(Protocol):
    """Asks for the UUIDs of topics, as `KafkaTopicIds` does."""

    def __call__(self, topics: Iterable[str], seconds: float) -> dict[str, str]:
        """Return the UUIDs of those topics that exist, within `seconds`. Raises KafkaException."""
        ...


class Identities:
    """The topics that a stage works with: those that it met first, or those that its process began with."""

    def __init__(self, ask: TopicIds, began_with: Mapping[str, str]) -> None:
        self._ask = ask
        self._ids = dict(began_with)

    def marks(self, topics: Iterable[str], seconds: float) -> dict[str, bytes]:
        """Return the marks of these topics, as `progress.topic_mark` makes them.

        Raises TopicMadeAnew. Raises KafkaException, also if a topic is missing: it may be about to be made anew.
        """
        asked = list(topics)
        found = self._ask(asked, seconds)
        require_same(self._ids, found)
        for topic in asked:
            if topic not in found:
                raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, f"the topic {topic} is gone"))
        self._ids |= found
        return {topic: topic_mark(found[topic]) for topic in asked}


def require_same(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise TopicMadeAnew for a topic that has another UUID now. A missing topic may be made anew yet."""
    for topic, found in now.items():
        if before.get(topic, found) != found:
            raise TopicMadeAnew(topic)
