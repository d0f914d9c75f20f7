"""The relay's position: the number of the next row of the outbox that Kafka does not have.

The position is an offset of the relay's consumer group, in partition 0 of `model_requests`. A Kafka transaction commits
the position together with the records of all rows below it. So the position shows exactly which rows Kafka has.

The group's name contains the store's UUID. A store that was restored from a backup has the same UUID, and may be behind
the position. The restored store would then give new rows the numbers of rows that were lost with the old store. So each
process reads the position before its first write into the outbox, and `adopt` raises the counter. The records of
restored rows below the position are on Kafka; the relay puts the records of all other rows there.

Kafka forgets a group's offsets after seven days without a commit, and the offsets of a deleted topic. So the relay
commits every hour, and the store remembers each position, too. If Kafka has forgotten the position, the relay uses the
store's copy.
"""

from __future__ import annotations

from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from sqlalchemy import Connection, func, select, text

from gateway.store.meta import set_value, value_of
from gateway.store.tables import outbox
from schemas.settings import KafkaSettings
from workers.kafka.clients import asking_config

ASK_SECONDS = 5.0
SKIPPED_AFTER_MOVE = 1_000_000
"""The count of numbers that are left out when another database server answers.

A relay may still put rows on Kafka that it has read from the former server, and the new one may lack these rows. Their
numbers must not be given again, even if they are beyond the position that Kafka shows now.
"""
_RELAYED = "relayed"


class PositionReader:
    """Reads the position from Kafka. Only one thread at a time may use the reader."""

    def __init__(self, kafka: KafkaSettings, store: str) -> None:
        """`store` is the store's UUID."""
        self.group = f"{kafka.topic_prefix}gateway-relay-{store}"
        self._topic = kafka.topics.requests()
        self._consumer = Consumer(
            {
                **asking_config(kafka),
                "group.id": self.group,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",  # with this value, Kafka answers only when no commit is pending
            }
        )

    def at(self, position: int) -> list[TopicPartition]:
        """Return the offset to commit for a position."""
        return [TopicPartition(self._topic, 0, position)]

    def read(self) -> int | None:
        """Return the committed position; None if there is none. Raises KafkaException."""
        (found,) = self._consumer.committed([TopicPartition(self._topic, 0)], timeout=ASK_SECONDS)
        if found.error is not None:
            raise KafkaException(found.error)
        return found.offset if found.offset >= 0 else None

    def group_metadata(self) -> Any:
        """Return the group's identity, which a Kafka transaction needs to commit an offset.

        The group has no members.
        """
        return self._consumer.consumer_group_metadata()

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()


def adopt(connection: Connection, position: int | None, skipped: int = 0) -> tuple[int, bool]:
    """Delete the rows that Kafka has, and raise the counter to the position. Call this in a write transaction.

    `skipped` numbers more are never given. Returns the position (the store's copy, if Kafka has none), and True if the
    store was behind Kafka.
    """
    if skipped:
        _raise_counter(connection, max(_last_number(connection), (position or 1) - 1) + skipped)
    if position is None:
        return int(value_of(connection, _RELAYED) or 0), False
    behind = _last_number(connection) < position - 1
    if behind:
        _raise_counter(connection, position - 1)
    forget(connection, position)
    return position, behind


def forget(connection: Connection, position: int) -> None:
    """Delete the rows below the position, and remember it."""
    connection.execute(outbox.delete().where(outbox.c.number < position))
    set_value(connection, _RELAYED, str(position))


def _last_number(connection: Connection) -> int:
    """Return the last number that was given to a row; 0 in a new store."""
    if connection.dialect.name == "postgresql":
        called = connection.execute(text("SELECT last_value, is_called FROM outbox_number_seq")).one()
        return called.last_value if called.is_called else 0
    found = connection.scalar(text("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'"))
    return int(found or 0)


def _raise_counter(connection: Connection, last: int) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT setval('outbox_number_seq', :last)"), {"last": last})
        return
    connection.execute(text("DELETE FROM sqlite_sequence WHERE name = 'outbox'"))
    connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES ('outbox', :last)"), {"last": last})


def waiting(connection: Connection) -> tuple[int, int]:
    """Return the number of rows that wait for Kafka, and their bytes."""
    size = func.coalesce(func.sum(outbox.c.size), 0)
    found = connection.execute(select(func.count(), size).select_from(outbox)).one()
    return int(found[0]), int(found[1])
