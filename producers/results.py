"""Reads results for clients without a callback: new results as they are settled, or results that the topic still has.

A job that was redriven or submitted twice has several results; only the newest of those in the topic is used
(`newest`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import Any, NamedTuple

from kafka import TopicPartition

from producers.connection import kafka_errors_translated, needed, partition_counts
from producers.errors import RequestRefused
from producers.newest import Moment, Moments, superseded
from producers.reader import SKEW_MS, CommittedReader
from producers.scan import Range, Scanner, Stored, StoredPlace, stored
from producers.selection import Selection
from schemas.codec import InvalidResult, read_result
from schemas.result import Result
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, Deadline, SystemClock

_POLL_MS = 200
_STALL_SECONDS = 10.0
_CLOCK = SystemClock()
_PURPOSE = "that is to be read to collect results"


class Settled(NamedTuple):
    """A result with its tenant and time."""

    tenant: str
    result: Result
    moment: Moment


class ResultsReader(CommittedReader):
    """Yields every result that is settled after the reader's construction.

    So construct the reader before you send jobs. With `since_ms`, Unix milliseconds, the reader also yields the newest
    result of each job that was settled after about that time.
    """

    def __init__(self, settings: KafkaSettings, since_ms: int | None = None) -> None:
        topic = settings.topics.results
        with needed(_PURPOSE):
            count = partition_counts(settings, [topic])[topic]
        partitions = [TopicPartition(topic, number) for number in range(count)]
        super().__init__(settings)
        self._moments = Moments()
        with kafka_errors_translated(settings):
            self._consumer.assign(partitions)
            self._kept: dict[Any, int] = self._consumer.end_offsets(partitions)
            starts = self._kept
            if since_ms is not None:
                starts = self._at(partitions, max(0, since_ms - SKEW_MS), self._kept)
            for partition, offset in starts.items():
                self._consumer.seek(partition, offset)
        self._superseded = self._superseded_from(starts)

    def _superseded_from(self, starts: dict[Any, int]) -> set[StoredPlace]:
        """Return the places of those results, from `starts` on, that are older than another result of their job."""
        ranges = [Range(p.topic, p.partition, starts[p], stop) for p, stop in self._kept.items() if starts[p] < stop]
        if not ranges:
            return set()
        with Scanner(self._settings) as scanner:
            return _superseded(scanner.read(ranges))

    def poll(self, from_ms: int = 0) -> Iterator[Settled]:
        """Yield the results since the last call; wait up to 0.2 s for the first one.

        Results that were settled before `from_ms`, Unix milliseconds, are left out.
        """
        with needed(_PURPOSE), kafka_errors_translated(self._settings):
            batches = self._consumer.poll(timeout_ms=_POLL_MS)
        for records in batches.values():
            for record in records:
                place = StoredPlace(record.partition, record.offset)
                moment = self._moments.of(record.timestamp, place)
                if record.timestamp < from_ms or place in self._superseded:
                    continue
                try:
                    yield Settled(stored(record).tenant, read_result(record.value), moment)
                except InvalidResult:
                    continue  # no worker wrote the record, so no job waits for it

    def follow(self, deadline: Deadline | None, from_ms: int = 0, clock: Clock = _CLOCK) -> Iterator[list[Settled]]:
        """Call `poll` repeatedly until the deadline, and yield the results of each call.

        Results that were settled before the reader's construction are yielded even after the deadline. Raises
        RequestRefused if, after the deadline, Kafka delivers none of these results for too long.
        """
        at, patience = self._positions(), Deadline.after(clock, _STALL_SECONDS)
        while not (deadline and deadline.passed) or any(at[each] < end for each, end in self._kept.items()):
            yield list(self.poll(from_ms))
            before, at = at, self._positions()
            if at != before or not (deadline and deadline.passed):
                patience = Deadline.after(clock, _STALL_SECONDS)
            elif patience.passed:
                raise RequestRefused(f"Kafka delivered none of its records for {_STALL_SECONDS:.0f} s; try again")

    def _positions(self) -> dict[Any, int]:
        with kafka_errors_translated(self._settings):
            return {partition: self._consumer.position(partition) for partition in self._kept}


def kept_results(
    settings: KafkaSettings, scanner: Scanner, selection: Selection, job_ids: Container[str] | None = None
) -> Iterator[Result]:
    """Yield the newest result of each job in a selection, as far as `model_results` still has one.

    The topic is read twice. With `job_ids`, yield only results of these jobs. Raises ProducerError, before the first
    result if the topic cannot be read.
    """

    def selected() -> Iterator[Stored]:
        return filter(selection.takes, scanner.read(ranges))

    with needed(_PURPOSE):
        ranges = scanner.ranges(settings.topics.results, selection.since_ms, selection.until_ms)
        older = _superseded(selected(), job_ids)
    return (
        result
        for record, result in _readable(selected())
        if record.place not in older and (job_ids is None or result.job_id in job_ids)
    )


def _superseded(records: Iterable[Stored], job_ids: Container[str] | None = None) -> set[StoredPlace]:
    moments = Moments()
    return superseded(
        (record.tenant, result.job_id, moments.of(record.at_ms, record.place))
        for record, result in _readable(records)
        if job_ids is None or result.job_id in job_ids
    )


def _readable(records: Iterable[Stored]) -> Iterator[tuple[Stored, Result]]:
    with needed(_PURPOSE):
        for record in records:
            try:
                yield record, read_result(record.value)
            except InvalidResult:
                continue  # no worker wrote the record
