"""Topics by their UUIDs: a topic that is deleted and created again under the same name is another topic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from confluent_kafka import KafkaError, KafkaException

from workers.stage.progress import topic_mark


class TopicMadeAnew(Exception):  # noqa: N818 - it names what happened
    """A topic was deleted and created again, but the process still holds progress and identities of the old topic."""

    def __init__(self, topic: str) -> None:
        super().__init__(
            f"the topic {topic} was deleted and created again while this process ran; the process ends, and a new "
            "process begins with the new topic. If no supervisor restarts the process, start it again"
        )
        self.topic = topic


class TopicIds(Protocol):
    """A function that asks Kafka for the UUIDs of topics, such as `KafkaTopicIds`."""

    def __call__(self, topics: Iterable[str], seconds: float) -> dict[str, str]:
        """Return, within `seconds`, the UUIDs of all existing topics among `topics`. Raises KafkaException."""
        ...


class Identities:
    """The UUIDs of a stage's topics: given in `began_with`, or else the first UUIDs that Kafka returned."""

    def __init__(self, ask: TopicIds, began_with: Mapping[str, str]) -> None:
        self._ask = ask
        self._ids = dict(began_with)

    def marks(self, topics: Iterable[str], seconds: float) -> dict[str, bytes]:
        """Return the marks of these topics, as made by `progress.topic_mark`.

        Raises TopicMadeAnew, and KafkaException. A missing topic raises KafkaException, since it may be created again
        soon.
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
    """Raise TopicMadeAnew if a topic in `now` had another UUID in `before`. Missing topics raise nothing."""
    for topic, found in now.items():
        if before.get(topic, found) != found:
            raise TopicMadeAnew(topic)
