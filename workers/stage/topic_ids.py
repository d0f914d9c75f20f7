"""Topics by their UUIDs: a topic that is deleted and created again under the same name is another topic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from confluent_kafka import KafkaError, KafkaException

from schemas.operator_error import OperatorError
from workers.stage.progress import topic_mark

ASK_SECONDS = 5.0
ASK_AGAIN_SECONDS = 1.0


class TopicMadeAnew(OperatorError):  # noqa: N818 - it names what happened
    """A topic was deleted and created again, but the process still holds progress and identities of the old topic."""

    def __init__(self, topic: str) -> None:
        super().__init__(
            f"the topic {topic} was deleted and created again while this process ran; the process ends, and a new "
            "process begins with the new topic. If no supervisor restarts the process, start it again"
        )
        self.topic = topic


class Question(Protocol):
    """A question to Kafka for the UUIDs of topics, such as `TopicQuestion`."""

    def done(self) -> bool:
        """Say whether the answer is there, or the question has failed."""
        ...

    def result(self, timeout: float) -> dict[str, str]:
        """Return, within `timeout` seconds, the UUIDs of all existing topics. Raises KafkaException."""
        ...


Ask = Callable[[Iterable[str], float], Question]
"""Asks for the UUIDs of these topics, to be answered within these seconds, and does not wait."""


class Identities:
    """The UUIDs of a stage's topics: given in `began_with`, or else the first UUIDs that Kafka returned."""

    def __init__(self, ask: Ask, began_with: Mapping[str, str]) -> None:
        self._ask = ask
        self._ids = dict(began_with)
        self._question: tuple[frozenset[str], Question] | None = None
        self._ask_again_at = 0.0
        self.doubted: set[str] = set()
        """Topics whose next records may be of a new topic with the same name. Nothing may be committed for them."""

    def marks(self, topics: Iterable[str], seconds: float) -> dict[str, bytes]:
        """Return the marks of these topics, as made by `progress.topic_mark`.

        Raises TopicMadeAnew, and KafkaException. A missing topic raises KafkaException, since it may be created again
        soon.
        """
        asked = list(topics)
        return self._adopted(asked, self._ask(asked, seconds).result(seconds))

    def look(self, now: float) -> None:
        """Ask about the doubted topics without waiting, or read the answer. `now`: monotonic seconds.

        Raises TopicMadeAnew, and KafkaException if Kafka gave no answer; a later call then asks again.
        """
        if self._question is None:
            if not self.doubted or now < self._ask_again_at:
                return
            self._question = frozenset(self.doubted), self._ask(self.doubted, ASK_SECONDS)
        asked, answer = self._question
        if answer.done():
            self._question, self._ask_again_at = None, now + ASK_AGAIN_SECONDS
            self._adopted(asked, answer.result(0))
            self.doubted -= asked
            self._ask_again_at = now

    def _adopted(self, asked: Iterable[str], found: dict[str, str]) -> dict[str, bytes]:
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
