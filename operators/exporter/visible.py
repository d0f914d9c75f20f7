"""The offsets of topics that a read_committed reader sees, and the partitions that lack a copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition
from kafka.admin import OffsetSpec
from kafka.protocol.consumer import IsolationLevel

Visible = Mapping[tuple[str, int], tuple[int, int]]
"""Maps a topic and partition to the first offset and to the offset after the last visible record."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The state of some topics."""

    offsets: Visible
    thin_partitions: int
    """Number of partitions with a copy on a broker that is away or behind."""


def visible_offsets(admin: Any, topics: Sequence[str]) -> Seen:
    """Return the offsets of all partitions of these topics, and how many partitions lack a copy.

    Missing topics are left out. Raises kafka-python's errors.
    """
    described = [topic for topic in admin.describe_topics(list(topics)) if not topic["error_code"]]
    places = [
        TopicPartition(topic["name"], number) for topic in described for number in range(len(topic["partitions"]))
    ]
    starts = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.EARLIEST))
    stops = admin.list_partition_offsets(
        dict.fromkeys(places, OffsetSpec.LATEST), isolation_level=IsolationLevel.READ_COMMITTED
    )
    partitions = [each for topic in described for each in topic["partitions"]]
    return Seen(
        {(place.topic, place.partition): (starts[place].offset, stops[place].offset) for place in places},
        sum(len(each["isr_nodes"]) < len(each["replica_nodes"]) for each in partitions),
    )
