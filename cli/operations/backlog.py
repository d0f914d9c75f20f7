"""Reads the fleet's backlog from Kafka. This works even if no process runs that publishes metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition
from kafka.admin import OffsetSpec

from producers.connection import Committed, admin_client, group_offsets
from producers.errors import TopicMissing
from schemas.groups import DELIVERY_GROUP, INFERENCE_GROUP
from schemas.settings import KafkaSettings

DoneOffsets = Callable[[int, str], int]
"""Reads a ledger from its base and a commit's metadata. Returns a bitmap whose bit i stands for offset base + i."""


@dataclass(frozen=True, slots=True)
class GroupProgress:
    """A group's progress in one partition."""

    group: str
    """`inference` or `delivery`."""
    topic: str
    partition: int
    base: int
    """The group's committed offset, below which all records are done. If the group has committed no offset, `base` is
    the first record's offset."""
    end: int
    """The offset after the last record. The difference from `base` also counts transaction markers, until the group has
    passed them."""
    metadata: str
    """The commit's metadata, which is the ledger. It states which records above the base are done."""
    topic_id: str = ""
    """The topic's UUID. A topic that was deleted and created again has another UUID."""

    def undone(self, done_offsets: DoneOffsets) -> int:
        """Return the number of records that are not done: all from the base on, minus those done in the ledger."""
        return max(0, self.end - self.base - done_offsets(self.base, self.metadata).bit_count())


def standings(settings: KafkaSettings) -> list[GroupProgress]:
    """Return the progress in every partition that a group of the fleet reads; the partitions of lanes come first.

    Raises ProducerError. The result includes the lanes of all engines, and the retry tiers of earlier schedules.
    """
    with admin_client(settings) as admin:
        return standings_by(admin, settings)


def standings_by(admin: Any, settings: KafkaSettings) -> list[GroupProgress]:
    """Return the same as `standings`, but use an admin client that is already open.

    Raises TopicMissing and kafka-python's errors.
    """
    names, existing = settings.topics, admin.list_topics()
    if names.requests() not in existing:  # a missing fleet is an error, not an empty backlog
        raise TopicMissing(names.requests())
    tiers = [*names.tiers.values(), *names.former_tiers(existing)]
    read = {
        **dict.fromkeys(names.lanes(existing), INFERENCE_GROUP),
        **{
            topic: DELIVERY_GROUP
            for topic in (names.results, names.events, *tiers, *names.later.values())
            if topic in existing
        },
    }
    described = _described(admin, list(read))
    places = [TopicPartition(topic, number) for topic in read for number in range(described[topic][1])]
    starts = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.EARLIEST))
    ends = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.LATEST))
    committed = {
        group: group_offsets(admin, f"{settings.topic_prefix}{group}") for group in (INFERENCE_GROUP, DELIVERY_GROUP)
    }
    found = []
    for place in places:
        group, start = read[place.topic], starts[place].offset
        said = committed[group].get((place.topic, place.partition), Committed(start, ""))
        base = max(said.offset, start)  # retention may have removed even records after the committed offset
        metadata = said.metadata if base == said.offset else ""
        end, topic_id = ends[place].offset, described[place.topic][0]
        found.append(GroupProgress(group, place.topic, place.partition, base, end, metadata, topic_id))
    return found


def _described(admin: Any, topics: list[str]) -> dict[str, tuple[str, int]]:
    """Return each topic's UUID and number of partitions."""
    return {
        topic["name"]: (str(topic["topic_id"]), len(topic["partitions"])) for topic in admin.describe_topics(topics)
    }
