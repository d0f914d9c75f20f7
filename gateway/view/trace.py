"""Everything that the store knows of one job: submitter, prompt's hash, model, sources, citations, each callback."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from gateway.store.tables import batches, job_attempts, jobs
from gateway.view.stored_jobs import StoredJob, find_job
from schemas.codec import read_result
from schemas.result import Result

MOST_TENANTS = 100_000
"""Limit on the tenants that a search without a tenant visits."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One callback attempt."""

    at_ms: int
    webhook_id: str
    origin: str | None
    status: int | None
    error: str | None
    attempt: int | None


@dataclass(frozen=True, slots=True)
class Trace:
    """One job of a tenant, from its submission to its callbacks."""

    tenant: str
    job: StoredJob
    batch_file: str | None
    """The id of the input file of the job's batch."""
    result: Result | None
    attempts: list[Attempt]

    def json(self) -> dict[str, Any]:
        """Return the trace as an object for programs, with the cited text of each citation.

        The object contains the answer.
        """
        job = {name: value for name, value in asdict(self.job).items() if name not in ("result", "request")}
        result = None if self.result is None else self.result.model_dump(mode="json", exclude_none=True)
        if result is not None and self.result is not None:
            for said, cited in zip(result["citations"], self.result.citations, strict=True):
                said["text"] = (self.result.text or "")[cited.start : cited.end]
        return {
            "tenant": self.tenant,
            "job": job,
            "batch_file": self.batch_file,
            "result": result,
            "attempts": [asdict(each) for each in self.attempts],
        }


def trace(connection: Connection, job_id: str, tenant: str | None = None) -> list[Trace]:
    """Return the traces of the jobs with this id: one for each tenant with such a job, or only that of `tenant`."""
    tenants = _tenants(connection) if tenant is None else [tenant]
    found = ((name, find_job(connection, name, job_id)) for name in tenants)
    return [_trace(connection, name, job) for name, job in found if job is not None]


def _tenants(connection: Connection) -> Iterator[str]:
    """Yield the tenants that have jobs or batches. A tenant costs one step in an index, however many jobs it has."""
    seen: set[str] = set()
    for column in (jobs.c.tenant, batches.c.tenant):
        last = ""
        for _ in range(MOST_TENANTS):
            after: str | None = connection.execute(select(func.min(column)).where(column > last)).scalar()
            if after is None:
                break
            if after not in seen:
                seen.add(after)
                yield after
            last = after


def _trace(connection: Connection, tenant: str, job: StoredJob) -> Trace:
    batch_file = None
    if job.batch_id is not None:
        this = (batches.c.tenant == tenant) & (batches.c.id == job.batch_id)
        batch_file = connection.execute(select(batches.c.input_file_id).where(this)).scalar()
    attempts = attempts_of(connection, tenant, job.job_id)
    return Trace(tenant, job, batch_file, read_result(job.result) if job.result is not None else None, attempts)


def attempts_of(connection: Connection, tenant: str, object_id: str) -> list[Attempt]:
    """Return the callback attempts of a job or a batch, oldest first."""
    mine = (job_attempts.c.tenant == tenant) & (job_attempts.c.job_id == object_id)
    rows = connection.execute(select(job_attempts).where(mine).order_by(job_attempts.c.at))
    return [attempt_of(row) for row in rows]


def attempt_of(row: Any) -> Attempt:
    """Return a row of `job_attempts`. Members are None if delivery wrote them in another form than today's."""
    said = row.details
    return Attempt(
        at_ms=row.at,
        webhook_id=row.webhook_id,
        origin=_text(said.get("origin")),
        status=_number(said.get("status")),
        error=_text(said.get("error")),
        attempt=_number(said.get("attempt")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> int | None:
    return value if type(value) is int else None
