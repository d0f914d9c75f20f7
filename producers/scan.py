"""Reads a topic from a start to a fixed end, for commands that list, count and change records.

The scanner sees committed records only and joins no group, see `CommittedReader`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

from kafka import TopicPartition

from producers.connection import admin_client, connect, kafka_errors_translated, partition_counts
from producers.errors import RequestRefused
from producers.reader import SKEW_MS, CommittedReader
from producers.records import RecordConsumer
from producers.topic_configs import shown_configs
from schemas import topics
from schemas.endpoint import EndpointKey
from schemas.job import DEFAULT_TENANT
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, Deadline, SystemClock

_POLL_MS = 500
_STALL_SECONDS = 60.0
"""Longest silence of a broker that still has records to send. After this silence, the read fails."""
_LOOK_AGAIN_SECONDS = 0.1
_CLOCK = SystemClock()


class StoredPlace(NamedTuple):
    """A record's partition and offset in a known topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> StoredPlace | None:
        """Parse `P:N`, a partition and an offset. Return None for any other text."""
        partition, colon, offset = text.partition(":")
        numbers = [part for part in (partition, offset) if part.isascii() and part.isdigit() and len(part) <= 18]
        return cls(int(partition), int(offset)) if colon and len(numbers) == 2 else None


@dataclass(frozen=True, slots=True)
class Stored:
    """One record, as stored in Kafka."""

    topic: str
    place: StoredPlace
    at_ms: int
    """The record's timestamp, Unix milliseconds."""
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]

    def header(self, name: str) -> str | None:
        """Return the last header of this name as text; None if it is absent or not UTF-8."""
        for found, value in reversed(self.headers):
            if found == name and value is not None:
                try:
                    return value.decode()
                except UnicodeDecodeError:
                    return None
        return None

    def number(self, name: str) -> int | None:
        """Return the last header of this name as a whole number of at most 18 digits; None if it is anything else."""
        text = self.header(name)
        return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 18 else None

    @property
    def tenant(self) -> str:
        """The tenant of the job, result or callback."""
        return self.header(topics.TENANT) or DEFAULT_TENANT

    @property
    def endpoint(self) -> EndpointKey:
        """The callback's tenant and URL."""
        return self.tenant, self.header(topics.CALLBACK_URL) or ""

    @property
    def ids(self) -> set[str]:
        """The record's job id and webhook id, for selections."""
        return {found for name in (topics.JOB_ID, topics.WEBHOOK_ID) if (found := self.header(name))}


class Range(NamedTuple):
    """The offsets of one partition from `start` to before `stop`."""

    topic: str
    partition: int
    start: int
    stop: int


def only(ranges: list[Range], place: StoredPlace | None) -> list[Range]:
    """Return the range of this place alone, or an empty list if no range contains it.

    If `place` is None, return all ranges.
    """
    if place is None:
        return ranges
    held = [each for each in ranges if each.partition == place.partition and each.start <= place.offset < each.stop]
    return [each._replace(start=place.offset, stop=place.offset + 1) for each in held]


class Scanner(CommittedReader):
    """Reads ranges of topics. All methods raise ProducerError."""

    def __init__(self, settings: KafkaSettings, clock: Clock = _CLOCK) -> None:
        super().__init__(settings)
        self._clock = clock

    def ranges(
        self, topic: str, since_ms: int | None = None, until_ms: int | None = None, skew_ms: int = SKEW_MS
    ) -> list[Range]:
        """Return the ranges that may contain records from `since_ms` to before `until_ms`.

        The caller must check each record. `skew_ms` widens the ranges. Even if it is 0, the ranges contain each record
        with a timestamp from `since_ms` on.
        """
        count = partition_counts(self._settings, [topic], self._clock)[topic]
        partitions = [TopicPartition(topic, number) for number in range(count)]
        with kafka_errors_translated(self._settings):
            starts, stops = self._consumer.beginning_offsets(partitions), self._consumer.end_offsets(partitions)
            if since_ms is not None:
                starts = self._at(partitions, max(0, since_ms - skew_ms), stops)
            if until_ms is not None:
                stops = self._at(partitions, until_ms + skew_ms, stops)
        return [Range(topic, p.partition, starts[p], stops[p]) for p in partitions if starts[p] < stops[p]]

    def topics(self) -> list[str]:
        """Return the existing topics, as far as ACLs show them."""
        with kafka_errors_translated(self._settings):
            return sorted(self._consumer.topics())

    def wait_until_settled(self, topics: Sequence[str]) -> None:
        """Wait until all records that these topics have now are visible.

        A dead process's open transaction hides later records for some seconds. Raises RequestRefused.
        """
        counts = partition_counts(self._settings, list(topics), self._clock)
        partitions = [TopicPartition(topic, number) for topic in topics for number in range(counts[topic])]
        ends, deadline = self._uncommitted_ends(partitions), Deadline.after(self._clock, _STALL_SECONDS)
        while True:
            with kafka_errors_translated(self._settings):
                seen = self._consumer.end_offsets(partitions)
            if all(seen[partition] >= ends[partition] for partition in partitions):
                return
            if deadline.passed:
                raise RequestRefused(f"a transaction in Kafka is open for more than {_STALL_SECONDS:.0f} s; try again")
            self._clock.sleep(_LOOK_AGAIN_SECONDS)

    def kept_from_ms(self, topic: str) -> int:
        """Return the time since which a topic has all of its records, Unix milliseconds; 0 if no record was deleted.

        An empty partition has no record that shows this time. If the topic deletes records by age alone, its deleted
        records were at least as old as the topic's retention. Otherwise its deleted records may have been new.
        """
        count = partition_counts(self._settings, [topic], self._clock)[topic]
        partitions = [TopicPartition(topic, number) for number in range(count)]
        with kafka_errors_translated(self._settings):
            starts = self._consumer.beginning_offsets(partitions)
            first = self._consumer.offsets_for_times(dict.fromkeys(partitions, 0))
        cut = [p for p in partitions if starts[p] > 0]
        kept = [first[p].timestamp for p in cut if first.get(p)]
        if len(kept) < len(cut):
            kept.append(int(self._clock.time() * 1000) - self._retention_ms(topic))
        return max(kept, default=0)

    def _retention_ms(self, topic: str) -> int:
        """Return the least age at which the topic deletes records.

        The result is 0 if the topic deletes by other rules too, or hides its settings.
        """
        with admin_client(self._settings) as admin:
            config = shown_configs(admin, [topic]).get(topic, {})
        by_age_alone = (config.get("cleanup.policy"), config.get("retention.bytes")) == ("delete", "-1")
        return max(0, int(config["retention.ms"])) if by_age_alone else 0

    def read(self, ranges: Sequence[Range]) -> Iterator[Stored]:
        """Yield the records of these ranges, of one or more topics, in order within each partition."""
        left = {TopicPartition(each.topic, each.partition): each for each in ranges}
        if not left:
            return
        with kafka_errors_translated(self._settings):
            self._consumer.assign(list(left))
            # Resume the partitions, because an earlier call paused each one that it read to the end, and `assign` does
            # not resume.
            self._consumer.resume(*left)
            for partition, each in left.items():
                self._consumer.seek(partition, each.start)
        deadline = Deadline.after(self._clock, _STALL_SECONDS)
        while left:
            records, progress = self._poll(left)
            yield from records
            if progress:
                deadline = Deadline.after(self._clock, _STALL_SECONDS)
            elif deadline.passed:
                raise RequestRefused(f"Kafka delivered none of its records for {_STALL_SECONDS:.0f} s; try again")

    def _uncommitted_ends(self, partitions: list[Any]) -> dict[Any, int]:
        """Return the end offsets including open transactions, whose records the scanner itself does not see."""
        isolation = {"group_id": None, "enable_auto_commit": False, "isolation_level": "read_uncommitted"}
        with closing(connect(RecordConsumer, self._settings, **isolation)) as consumer:
            with kafka_errors_translated(self._settings):
                ends: dict[Any, int] = consumer.end_offsets(partitions)
            return ends

    def _poll(self, left: dict[Any, Range]) -> tuple[list[Stored], bool]:
        """Return new records, and True if any position moved. Partitions that were read to their end are paused."""
        with kafka_errors_translated(self._settings):
            before = {partition: self._consumer.position(partition) for partition in left}
            batches = self._consumer.poll(timeout_ms=_POLL_MS)
            # The position also moves past offsets without a visible record: markers, and aborted and compacted records.
            after = {partition: self._consumer.position(partition) for partition in left}
        records = [stored(record) for batch in batches.values() for record in batch if _inside(record, left)]
        done = [partition for partition, each in left.items() if after[partition] >= each.stop]
        for partition in done:
            del left[partition]
        if done and left:
            self._consumer.pause(*done)
        return records, after != before


def _inside(record: Any, left: dict[Any, Range]) -> bool:
    each = left.get(TopicPartition(record.topic, record.partition))
    return each is not None and each.start <= record.offset < each.stop


def stored(record: Any) -> Stored:
    """Convert a record of kafka-python's consumer."""
    return Stored(
        record.topic,
        StoredPlace(record.partition, record.offset),
        record.timestamp,
        record.key,
        record.value,
        list(record.headers),
    )
