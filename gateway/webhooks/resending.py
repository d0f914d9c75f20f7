"""Puts a tenant's callback into delivery again, under the same `webhook-id`.

The store has neither a callback's URL nor its headers, so the callback's record is read from Kafka. The record of a
result is in `model_results`, and the record of an event in `callback_events`. The relay then puts a copy into the
smallest tier, exactly once. A consumer that has received the callback before recognises the copy by its `webhook-id`,
and drops it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select

from gateway.accept.outbox import put_record
from gateway.store.tables import batches, job_attempts
from gateway.view.stored_jobs import find_job
from gateway.view.trace import attempt_of
from schemas import topics as names
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, Deadline, unix_ms
from telemetry.logs import origin_of

if TYPE_CHECKING:  # kafka-python is imported by the first search, since it takes as long as the whole door
    from producers.scan import Scanner, Stored

MOST_SECONDS = 20.0
"""Longest search of a topic."""
_BATCH_ENDS = (batches.c.completed_at, batches.c.failed_at, batches.c.expired_at, batches.c.cancelled_at)


class NoSuchCallback(Exception):  # noqa: N818 - it names what is missing
    """The tenant has no attempt of this callback, or Kafka no longer keeps the callback's record."""


@dataclass(frozen=True, slots=True)
class TriedCallback:
    """A callback that was tried at least once. Times are Unix milliseconds."""

    tenant: str
    webhook_id: str
    origin: str
    """Scheme, host and port of the callback's URL."""
    since_ms: int
    """The time of the job's result or of the batch's end."""
    tried_ms: int
    """The time of the first attempt."""


def find_tried(connection: Connection, tenant: str, object_id: str, webhook_id: str, origin: str) -> TriedCallback:
    """Return a callback of a job or a batch. Raises NoSuchCallback."""
    mine = (job_attempts.c.tenant == tenant) & (job_attempts.c.job_id == object_id)
    tried = select(job_attempts).where(mine, job_attempts.c.webhook_id == webhook_id).order_by(job_attempts.c.at)
    attempts = [attempt for attempt in map(attempt_of, connection.execute(tried)) if attempt.origin == origin]
    if not attempts:
        raise NoSuchCallback
    job = find_job(connection, tenant, object_id)
    batch = select(*_BATCH_ENDS).where(batches.c.tenant == tenant, batches.c.id == object_id)
    ends = [None if job is None else job.finished_ms, *next(iter(connection.execute(batch)), ())]
    first = attempts[0].at_ms
    return TriedCallback(tenant, webhook_id, origin, next((end for end in ends if end is not None), first), first)


def find_records(settings: KafkaSettings, wanted: TriedCallback, clock: Clock) -> list[Stored]:
    """Return the callback's records: one, or one for each endpoint of this origin. Blocks.

    Raises NoSuchCallback and ProducerError.
    """
    from cli.operations.replay import has_callback
    from producers.scan import Scanner

    deadline = Deadline.after(clock, MOST_SECONDS)
    with closing(Scanner(settings, clock)) as scanner:
        for found in (_result(scanner, settings, wanted, deadline), _events(scanner, settings, wanted, deadline)):
            records = [record for record in found if has_callback(record) and _origin(record) == wanted.origin]
            if records:
                return records
    raise NoSuchCallback


def _result(scanner: Scanner, settings: KafkaSettings, wanted: TriedCallback, deadline: Deadline) -> Iterator[Stored]:
    """Yield the result's record. Its timestamp is `since_ms`, so the search begins at exactly this time."""
    from producers.reader import SKEW_MS

    end = wanted.since_ms + SKEW_MS
    for record in scanner.read(scanner.ranges(settings.topics.results, wanted.since_ms, end, skew_ms=0)):
        if _is(record, wanted):
            yield record
            return
        if deadline.passed:
            return


def _events(scanner: Scanner, settings: KafkaSettings, wanted: TriedCallback, deadline: Deadline) -> Iterator[Stored]:
    """Yield the event's records. The gateway wrote them before the first attempt, so the search ends there."""
    end = max(wanted.since_ms, wanted.tried_ms)
    for record in scanner.read(scanner.ranges(settings.topics.events, wanted.since_ms, end)):
        if _is(record, wanted):
            yield record
        if deadline.passed:
            return


def _is(record: Stored, wanted: TriedCallback) -> bool:
    return (record.tenant, record.header(names.WEBHOOK_ID)) == (wanted.tenant, wanted.webhook_id)


def _origin(record: Stored) -> str:
    return origin_of(record.header(names.CALLBACK_URL) or "")


def resend(connection: Connection, settings: KafkaSettings, records: Sequence[Stored], clock: Clock) -> None:
    """Write copies of the records into the outbox, for delivery. Raises StoreAway while no work is accepted."""
    from cli.operations.put_back import for_delivery

    for record in records:
        returning = for_delivery(settings, record.key, record.value, record.headers, unix_ms(clock))
        headers = [(name, value or b"") for name, value in returning.headers]
        put_record(connection, returning.topic, returning.key, returning.value, headers)
