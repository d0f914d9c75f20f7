"""Puts a tenant's callback into delivery again, under the same `webhook-id`.

The store has neither a callback's URL nor its headers, so the callback's record is read from Kafka. The record of a
result is in `model_results`, and the record of an event in `callback_events`. The relay then puts a copy into the
smallest tier, exactly once. A consumer that has received the callback before recognises the copy by its `webhook-id`,
and drops it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select

from gateway.accept.outbox import put_record
from gateway.errors import ApiError
from gateway.store.tables import batches, job_attempts
from gateway.view.stored_jobs import find_job
from gateway.view.trace import attempt_of
from schemas import topics as names
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, Deadline, unix_ms
from telemetry.logs import origin_of

if TYPE_CHECKING:  # kafka-python is imported by the first search, since it takes as long as the whole door
    from producers.scan import Stored

MOST_SECONDS = 20.0
"""Longest search of a topic."""
_BATCH_ENDS = (batches.c.completed_at, batches.c.failed_at, batches.c.expired_at, batches.c.cancelled_at)


class NoSuchCallback(ApiError):  # noqa: N818 - it names what is missing
    """The tenant has no attempt of this callback, or Kafka no longer keeps the callback's record."""

    def __init__(self) -> None:
        super().__init__(404, "callback_not_found", "Kafka has no such callback, or keeps it no longer.")


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
    from producers.reader import SKEW_MS
    from producers.scan import Scanner

    deadline, topics = Deadline.after(clock, MOST_SECONDS), settings.topics
    with closing(Scanner(settings, clock)) as scanner:
        for topic, until_ms, skew_ms in (
            (topics.results, wanted.since_ms + SKEW_MS, 0),  # the record's timestamp is `since_ms`
            (topics.events, max(wanted.since_ms, wanted.tried_ms), SKEW_MS),  # written before the first attempt
        ):
            found: list[Stored] = []
            for record in scanner.read(scanner.ranges(topic, wanted.since_ms, until_ms, skew_ms)):
                if (record.tenant, record.header(names.WEBHOOK_ID)) == (wanted.tenant, wanted.webhook_id):
                    found.append(record)
                if deadline.passed or (found and topic == topics.results):  # a job has one result
                    break
            records = [record for record in found if has_callback(record) and _origin(record) == wanted.origin]
            if records:
                return records
    raise NoSuchCallback


def _origin(record: Stored) -> str:
    return origin_of(record.header(names.CALLBACK_URL) or "")


def resend(connection: Connection, settings: KafkaSettings, records: Sequence[Stored], clock: Clock) -> None:
    """Write copies of the records into the outbox, for delivery. Raises StoreAway while no work is accepted."""
    from cli.operations.put_back import for_delivery

    for record in records:
        returning = for_delivery(settings, record.key, record.value, record.headers, unix_ms(clock))
        headers = [(name, value or b"") for name, value in returning.headers]
        put_record(connection, returning.topic, returning.key, returning.value, headers)
