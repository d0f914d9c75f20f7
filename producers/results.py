"""Read results as they are settled, or those that are kept: for anybody who wants no webhooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kafka import TopicPartition

from producers.connection import kafka_errors_translated, needed, partition_counts
from producers.reader import CommittedReader
from producers.replay import Selection
from producers.scan import Scanner, Stored
from schemas import topics
from schemas.codec import InvalidResult, read_result
from schemas.job import DEFAULT_TENANT
from schemas.result import Result
from schemas.settings import KafkaSettings

_POLL_MS = 200
_PURPOSE = "that is to be read to collect results"


class ResultsReader(CommittedReader):
    """Sees every result that is settled after it was made. Made before jobs are sent, it misses none of theirs.

    With `since_ms`, Unix milliseconds, it sees those too that were settled from about then on.
    """

    def __init__(self, settings: KafkaSettings, since_ms: int | None = None) -> None:
        topic = settings.topics.results
        with needed(_PURPOSE):
            count = partition_counts(settings, [topic])[topic]
        partitions = [TopicPartition(topic, number) for number in range(count)]
        super().__init__(settings)
        with kafka_errors_translated(settings):
            self._consumer.assign(partitions)
            for partition, offset in self._offsets(partitions, since_ms).items():
                self._consumer.seek(partition, offset)

    def poll(self) -> Iterator[tuple[str, Result]]:
        """The results that came since, each with its tenant; waits up to 0.2 s where there are none."""
        with needed(_PURPOSE), kafka_errors_translated(self._settings):
            batches = self._consumer.poll(timeout_ms=_POLL_MS)
        for records in batches.values():
            for record in records:
                try:
                    yield _tenant(record.headers), read_result(record.value)
                except InvalidResult:
                    continue  # no worker wrote it, so nobody waits for it


def kept_results(settings: KafkaSettings, scanner: Scanner, selection: Selection) -> Iterator[Result]:
    """The results of a selection that `model_results` keeps now, each partition's in order.

    Raises ProducerError, before the first where the topic cannot be read at all.
    """
    with needed(_PURPOSE):
        ranges = scanner.ranges(settings.topics.results, selection.since_ms, selection.until_ms)
    return _readable(filter(selection.takes, scanner.read(ranges)))


def _readable(records: Iterable[Stored]) -> Iterator[Result]:
    with needed(_PURPOSE):
        for record in records:
            try:
                yield read_result(record.value)
            except InvalidResult:
                continue  # no worker wrote it


def _tenant(headers: list[tuple[str, bytes]]) -> str:
    said = [value for name, value in headers if name == topics.TENANT]
    return said[-1].decode("utf-8", "replace") if said else DEFAULT_TENANT
