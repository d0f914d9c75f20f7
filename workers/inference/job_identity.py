"""Whose a job is, as headers say it of its result, of its dead letter and of its record in another lane."""

from __future__ import annotations

from schemas import topics as names
from schemas.codec import InvalidJob, ReceivedJob
from workers.stage.dead_letters import dead_letter
from workers.stage.record import Header, Output, Record

IDENTITY = frozenset({names.TENANT, names.JOB_ID, names.WEBHOOK_ID, names.TRACEPARENT})
_STAMPS_OF_LETTERS = IDENTITY | {names.JOB_ORIGIN, names.SAID_TENANT, names.SAID_JOB_ID}


def identity_headers(tenant: str, job_id: str, webhook_id: str, traceparent: str | None) -> list[Header]:
    """The headers that name a job and its event."""
    headers: list[Header] = [
        (names.TENANT, tenant.encode()),
        (names.JOB_ID, job_id.encode()),
        (names.WEBHOOK_ID, webhook_id.encode()),
    ]
    if traceparent is not None:
        headers.append((names.TRACEPARENT, traceparent.encode()))
    return headers


def origin_header(whose: ReceivedJob | InvalidJob) -> Header:
    """What proves the `webhook-id` to the next reader of the job."""
    return names.JOB_ORIGIN, str(whose.origin).encode()


def job_letter(
    topic: str, record: Record, whose: ReceivedJob | InvalidJob, reason: str, detail: str, attempts: int
) -> Output:
    """The record with the identity that its result has: it got it where it stands, and would lose it elsewhere."""
    carried = [(name, value) for name, value in record.headers or () if name not in _STAMPS_OF_LETTERS]
    identity = identity_headers(whose.tenant, whose.job_id, whose.webhook_id, whose.traceparent)
    identity.append(origin_header(whose))
    said = _not_believed(record, whose.tenant, whose.job_id)
    return dead_letter(topic, record, reason, detail, attempts, carried + identity + said)


def _not_believed(record: Record, tenant: str, job_id: str) -> list[Header]:
    """What the record says of tenant and job id where it does not count as that; bytes of any kind."""
    stated = dict(record.headers or ())
    pairs = [(names.SAID_TENANT, names.TENANT, tenant), (names.SAID_JOB_ID, names.JOB_ID, job_id)]
    return [(said, stated[name]) for said, name, counted in pairs if stated.get(name) not in (None, counted.encode())]
