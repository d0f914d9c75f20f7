"""The headers that identify a job: on its result, on its dead letter, and on its record in another lane."""

from __future__ import annotations

from typing import TypedDict

from schemas import topics as names
from schemas.codec import InvalidJob, Origin, ReceivedJob
from schemas.problems import Problem
from schemas.screening import ScreeningFinding
from workers.stage.dead_letters import dead_letter
from workers.stage.record import Header, Output, Record

IDENTITY = frozenset({names.TENANT, names.JOB_ID, names.WEBHOOK_ID, names.TRACEPARENT})
_STAMPS_OF_LETTERS = IDENTITY | {names.JOB_ORIGIN, names.SAID_TENANT, names.SAID_JOB_ID}


def identity_headers(tenant: str, job_id: str, webhook_id: str, traceparent: str | None) -> list[Header]:
    """Return the headers that name a job and its event."""
    headers: list[Header] = [
        (names.TENANT, tenant.encode()),
        (names.JOB_ID, job_id.encode()),
        (names.WEBHOOK_ID, webhook_id.encode()),
    ]
    if traceparent is not None:
        headers.append((names.TRACEPARENT, traceparent.encode()))
    return headers


def origin_header(whose: ReceivedJob | InvalidJob) -> Header:
    """Return the header with the job's origin, so that the next reader derives the same `webhook-id`."""
    return names.JOB_ORIGIN, str(whose.origin).encode()


def job_letter(
    topic: str, record: Record, whose: ReceivedJob | InvalidJob, reason: str, detail: str, attempts: int
) -> Output:
    """Return the record as a dead letter with the same identity headers as the job's result.

    The identity derives from the job's origin, not from the letter's own place.
    """
    carried = [(name, value) for name, value in record.headers or () if name not in _STAMPS_OF_LETTERS]
    identity = identity_headers(whose.tenant, whose.job_id, whose.webhook_id, whose.traceparent)
    identity.append(origin_header(whose))
    said = _not_believed(record, whose.tenant, whose.job_id)
    return dead_letter(topic, record, reason, detail, attempts, carried + identity + said)


def _not_believed(record: Record, tenant: str, job_id: str) -> list[Header]:
    """Return headers with the tenant and the job id that the record states, if these differ from the job's own.

    The stated values come from a producer, and are not checked.
    """
    stated = dict(record.headers or ())
    pairs = [(names.SAID_TENANT, names.TENANT, tenant), (names.SAID_JOB_ID, names.JOB_ID, job_id)]
    return [(said, stated[name]) for said, name, counted in pairs if stated.get(name) not in (None, counted.encode())]


class ScreenedJob(InvalidJob):
    """The input filter rejects a valid job."""

    code = "screened"
    letter_reason = "screened"

    def __init__(
        self, received: ReceivedJob, problems: tuple[Problem, ...], findings: tuple[ScreeningFinding, ...]
    ) -> None:
        super().__init__(problems, callback_url=received.job.callback_url, **_identity(received))
        self.screening = findings


def invalid_job(received: ReceivedJob, field: str, reason: str, *, callback: bool = True) -> InvalidJob:
    """Return the error for a readable job that cannot be answered. Without `callback`, no result is POSTed."""
    url = received.job.callback_url if callback else None
    return InvalidJob((Problem(field, reason),), callback_url=url, **_identity(received))


class _Identity(TypedDict):
    job_id: str
    tenant: str
    webhook_id: str
    origin: Origin
    custom_id: str | None
    traceparent: str | None


def _identity(received: ReceivedJob) -> _Identity:
    return {
        "job_id": received.job_id,
        "tenant": received.tenant,
        "webhook_id": received.webhook_id,
        "origin": received.origin,
        "custom_id": received.job.custom_id,
        "traceparent": received.traceparent,
    }
