"""Puts records back into the fleet, at a given rate. It uses transactions, so that counts are exact."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import KafkaProducer
from kafka import errors as kafka_errors

from producers.connection import Connection, abandon, connect, kafka_errors_translated
from producers.errors import RequestRefused
from schemas import topics
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, Deadline, SystemClock

MAX_RECORD_BYTES = 1_000_000
"""Largest size of value, key and headers in bytes. A topic accepts 1 MiB, and the record's framing needs some of it."""

_HEADER_BYTES = 10
"""Bytes of a header in addition to its name and value: two lengths of at most five bytes (KIP-82)."""
_BATCH_RECORDS = 500
_BATCH_BYTES = 8 * 1024 * 1024
_TRANSACTION_MS = 60_000
_ANSWER_SECONDS = 60.0
"""Longest wait for a batch's confirmation. After this time, Kafka has timed out the transaction."""
_ABORT_SECONDS = 5.0
_CLOCK = SystemClock()


class NotPutBack(RequestRefused):
    """Kafka did not confirm a batch."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(
            f"Kafka did not confirm the last batch ({error}); another run may have taken over. The batches before it "
            "are put back"
        )


@dataclass(frozen=True, slots=True)
class Returning:
    """A record to put back. If `partition` is None, the key decides."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    partition: int | None = None

    @property
    def size(self) -> int:
        """Bytes of value, key and headers, rounded up."""
        headers = sum(len(name.encode()) + len(value or b"") + _HEADER_BYTES for name, value in self.headers)
        return len(self.value or b"") + len(self.key or b"") + headers


class PutBack(Connection):
    """A transactional producer.

    A later producer with an equal `identity` fences this producer and ends its open transaction.

    All methods raise ProducerError.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        identity: str,
        answer_seconds: float = _ANSWER_SECONDS,
        clock: Clock = _CLOCK,
    ) -> None:
        self._settings = settings
        self._answer_seconds = answer_seconds
        self._clock = clock
        self._in_transaction = False
        self._producer: Any = connect(
            KafkaProducer,
            settings,
            acks="all",
            allow_auto_create_topics=False,
            max_block_ms=round(answer_seconds * 1000),
            max_request_size=2 * MAX_RECORD_BYTES,
            transaction_timeout_ms=_TRANSACTION_MS,
            transactional_id=f"{settings.topic_prefix}{identity}",
        )
        try:
            with kafka_errors_translated(settings):
                self._producer.init_transactions()
        except BaseException:
            abandon(self._producer)
            raise

    def send(self, batch: Sequence[Returning]) -> None:
        """Write all records of the batch, or none.

        Raises NotPutBack if this fails, or if Kafka does not answer in time.
        """
        deadline = Deadline.after(self._clock, self._answer_seconds)
        try:
            self._producer.begin_transaction()
            self._in_transaction = True
            sent = [self._sent(each) for each in batch]
            # Check each record before the commit, because the client would commit even if it could not send a record.
            # Then Kafka might have a letter's mark, but not the letter.
            for each in sent:
                each.get(timeout=deadline.remaining)
            self._end(self._producer._transaction_manager.begin_commit, deadline.remaining)
            self._in_transaction = False
        except kafka_errors.KafkaError as error:
            self._abort()
            raise NotPutBack(error) from None

    def _abort(self) -> None:
        """Abort an open transaction. If Kafka does not answer, its timeout or a later producer ends it."""
        if self._in_transaction:
            self._in_transaction = False
            with contextlib.suppress(kafka_errors.KafkaError):
                self._end(self._producer._transaction_manager.begin_abort, _ABORT_SECONDS)

    def _end(self, begin: Callable[[], Any], seconds: float) -> None:
        """End the transaction as the producer's `commit_transaction` and `abort_transaction` do, but with a timeout."""
        result = begin()
        self._producer._sender.wakeup()
        if not result.wait(timeout_ms=seconds * 1000):
            raise kafka_errors.KafkaTimeoutError("no answer in time")

    def _sent(self, each: Returning) -> Any:
        headers = [(name, value or b"") for name, value in each.headers]  # the client refuses None as a header's value
        return self._producer.send(each.topic, each.value, each.key, headers, each.partition)

    def close(self) -> None:
        """Disconnect; abort the transaction if one is open."""
        try:
            self._abort()
        finally:
            abandon(self._producer)


def for_delivery(
    settings: KafkaSettings, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]], now_ms: int
) -> Returning:
    """Return a callback's record for the smallest tier: due now, without former attempts, with its `webhook-id`."""
    kept = [(name, data) for name, data in headers if name not in topics.WAITING_HEADERS]
    smallest = next(iter(settings.topics.tiers.values()))
    now = str(now_ms).encode()
    due_now = [(topics.NOT_BEFORE, now), (topics.LEFT, b"0"), (topics.WRITTEN, now), (topics.RESULT_AT, now)]
    return Returning(smallest, key, value, [*kept, *due_now])


def put_back(
    back: PutBack,
    groups: Iterable[Sequence[Returning]],
    per_second: float,
    on_done: Callable[[int], None],
    clock: Clock = _CLOCK,
) -> int:
    """Put back groups of records, at `per_second` groups a second, and return the number of groups.

    A group is never split. `on_done` is called with the number of groups so far. Raises NotPutBack.
    """
    started, done = clock.monotonic(), 0
    for batch in _batches(groups, max(1, min(_BATCH_RECORDS, int(per_second)))):
        early = done / per_second - (clock.monotonic() - started)
        if early > 0:
            clock.sleep(early)
        back.send([record for group in batch for record in group])
        done += len(batch)
        on_done(done)
    return done


def _batches(groups: Iterable[Sequence[Returning]], most: int) -> Iterator[list[Sequence[Returning]]]:
    """Yield batches of up to `most` groups; large groups make smaller batches."""
    batch: list[Sequence[Returning]] = []
    size = 0
    for group in groups:
        batch.append(group)
        size += sum(record.size for record in group)
        if len(batch) >= most or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
