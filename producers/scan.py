"""Read what stands in a topic, from a start to an end that is fixed before: for commands that look, count and act.

Only settled records, and no group is joined, see `CommittedReader`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kafka import TopicPartition

from producers.connection import kafka_errors_translated, partition_counts
from producers.errors import RequestRefused
from producers.reader import CommittedReader
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, Deadline, SystemClock

_POLL_MS = 500
_STALL_SECONDS = 60.0
"""How long the broker may give nothing of what it has before the reading is given up."""
_SKEW_MS = 15 * 60 * 1000
"""Records of a partition stand in the order of their writing; the clocks that stamp them may differ by this much."""
_CLOCK = SystemClock()


class Place(NamedTuple):
    """Where a record stands in a topic that is known otherwise. An offset is the record's own."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Place | None:
        """From `P:N`; None where the text is something else."""
        partition, colon, offset = text.partition(":")
        numbers = [part for part in (partition, offset) if part.isascii() and part.isdigit() and len(part) <= 18]
        return cls(int(partition), int(offset)) if colon and len(numbers) == 2 else None


@dataclass(frozen=True, slots=True)
class Stored:
    """One record as it stands in Kafka."""

    topic: str
    place: Place
    at_ms: int
    """Its timestamp, Unix milliseconds."""
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]

    def header(self, name: str) -> str | None:
        """The last header of this name as text; None where it is absent or is not UTF-8."""
        for found, value in reversed(self.headers):
            if found == name and value is not None:
                try:
                    return value.decode()
                except UnicodeDecodeError:
                    return None
        return None


class Range(NamedTuple):
    """The offsets of one partition from `start` up to, and without, `stop`."""

    topic: str
    partition: int
    start: int
    stop: int


class Scanner(CommittedReader):
    """Reads ranges of topics. Its methods raise ProducerError."""

    def __init__(self, settings: KafkaSettings, clock: Clock = _CLOCK) -> None:
        super().__init__(settings)
        self._clock = clock

    def ranges(self, topic: str, since_ms: int | None = None, until_ms: int | None = None) -> list[Range]:
        """Where records of this time can stand, as the topic is now; the caller still looks at each one's time."""
        count = partition_counts(self._settings, [topic], self._clock)[topic]
        partitions = [TopicPartition(topic, number) for number in range(count)]
        with kafka_errors_translated(self._settings):
            starts, stops = self._consumer.beginning_offsets(partitions), self._consumer.end_offsets(partitions)
            if since_ms is not None:
                starts = self._at(partitions, max(0, since_ms - _SKEW_MS), stops)
            if until_ms is not None:
                stops = self._at(partitions, until_ms + _SKEW_MS, stops)
        return [Range(topic, p.partition, starts[p], stops[p]) for p in partitions if starts[p] < stops[p]]

    def read(self, ranges: Sequence[Range]) -> Iterator[Stored]:
        """The records of these ranges, which may be of several topics; each partition's in order."""
        left = {TopicPartition(each.topic, each.partition): each for each in ranges}
        if not left:
            return
        with kafka_errors_translated(self._settings):
            self._consumer.assign(list(left))
            for partition, each in left.items():
                self._consumer.seek(partition, each.start)
        deadline = Deadline.after(self._clock, _STALL_SECONDS)
        while left:
            records, progress = self._poll(left)
            yield from records
            if progress:
                deadline = Deadline.after(self._clock, _STALL_SECONDS)
            elif deadline.passed:
                raise RequestRefused(f"Kafka gave nothing of what it has for {_STALL_SECONDS:.0f} s; try again")

    def _at(self, partitions: list[Any], at_ms: int, otherwise: dict[Any, int]) -> dict[Any, int]:
        """The first offset of this time or later in each partition, else what is given for it."""
        found = self._consumer.offsets_for_times(dict.fromkeys(partitions, at_ms))
        return {p: min(found[p].offset, otherwise[p]) if found.get(p) else otherwise[p] for p in partitions}

    def _poll(self, left: dict[Any, Range]) -> tuple[list[Stored], bool]:
        """What came, and whether anything moved. A partition that is read to its end is no longer asked for."""
        with kafka_errors_translated(self._settings):
            before = {partition: self._consumer.position(partition) for partition in left}
            batches = self._consumer.poll(timeout_ms=_POLL_MS)
            # The position also passes what is not shown: markers, aborted records, what compaction removed.
            after = {partition: self._consumer.position(partition) for partition in left}
        records = [_stored(record) for batch in batches.values() for record in batch if _inside(record, left)]
        done = [partition for partition, each in left.items() if after[partition] >= each.stop]
        for partition in done:
            del left[partition]
        if done and left:
            self._consumer.pause(*done)
        return records, after != before


def _inside(record: Any, left: dict[Any, Range]) -> bool:
    each = left.get(TopicPartition(record.topic, record.partition))
    return each is not None and each.start <= record.offset < each.stop


def _stored(record: Any) -> Stored:
    return Stored(
        record.topic,
        Place(record.partition, record.offset),
        record.timestamp,
        record.key,
        record.value,
        list(record.headers),
    )
