"""Reads the fleet's backlog from Kafka, which also works while no process with metrics runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition
from kafka.admin import OffsetSpec

from producers.connection import Committed, admin_client, group_offsets
from producers.errors import TopicMissing
from schemas.groups import DELIVERY_GROUP, INFERENCE_GROUP
from schemas.settings import KafkaSettings


@dataclass(frozen=True, slots=True)
class GroupProgress:
    """A group's progress in one partition."""

    group: str
    """`inference` or `delivery`."""
    topic: str
    partition: int
    base: int
    """The group's committed offset, below which all records are done. Without a commit, the first record's offset."""
    end: int
    """The offset after the last record. Transaction markers count like records until the group has passed them."""
    metadata: str
    """The commit's metadata: the ledger of records above the base that are done."""


def standings(settings: KafkaSettings) -> list[GroupProgress]:
    """Return the progress in every partition that a group of the fleet reads, lanes first. Raises ProducerError.

    This includes all engines' lanes, and tiers of earlier schedules.
    """
    names = settings.topics
    with admin_client(settings) as admin:
        existing = admin.list_topics()
        if names.requests() not in existing:  # a missing fleet is an error, not an empty backlog
            raise TopicMissing(names.requests())
        tiers = [*names.tiers.values(), *names.former_tiers(existing)]
        read = {
            **dict.fromkeys(names.lanes(existing), INFERENCE_GROUP),
            **{topic: DELIVERY_GROUP for topic in (names.results, names.events, *tiers) if topic in existing},
        }
        places = _places(admin, list(read))
        starts = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.EARLIEST))
        ends = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.LATEST))
        committed = {
            group: group_offsets(admin, f"{settings.topic_prefix}{group}")
            for group in (INFERENCE_GROUP, DELIVERY_GROUP)
        }
    found = []
    for place in places:
        group, start = read[place.topic], starts[place].offset
        said = committed[group].get((place.topic, place.partition), Committed(start, ""))
        base = max(said.offset, start)  # retention removed the records between the commit and the start
        metadata = said.metadata if base == said.offset else ""
        found.append(GroupProgress(group, place.topic, place.partition, base, ends[place].offset, metadata))
    return found


def _places(admin: Any, topics: list[str]) -> list[TopicPartition]:
    counts = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(topics)} if topics else {}
    return [TopicPartition(topic, number) for topic in topics for number in range(counts[topic])]
