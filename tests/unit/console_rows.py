"""Rows of the store for tests of the console page."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, insert

from schemas.codec import write_result
from schemas.result import Result
from tests.unit.gateway_rig import NOW, Rig

NOW_MS = int(NOW * 1000)
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}"
"""A text that would run a script on a page that does not escape it."""


def put(rig: Rig, table: Table, *rows: dict[str, Any]) -> None:
    def change(connection: Connection) -> None:
        for row in rows:
            connection.execute(insert(table).values(row))

    rig.store.write_now(change)


def job_row(tenant: str, job_id: str, **more: Any) -> dict[str, Any]:
    row = {"tenant": tenant, "job_id": job_id, "url": "/v1/jobs", "status": "queued", "created_at": NOW_MS}
    return {**row, "metadata": {}, **more}


def finished(tenant: str, job_id: str, **more: Any) -> dict[str, Any]:
    """The row of a job with a result; `more` are members of the result."""
    said = {"job_id": job_id, "outcome": "succeeded", "text": "an answer", "created_at": int(NOW), **more}
    result = Result.model_validate(said)
    at = {"status": str(result.outcome), "finished_at": NOW_MS, "result": write_result(result)}
    return job_row(tenant, job_id, **at)


def batch_row(tenant: str, batch_id: str, **more: Any) -> dict[str, Any]:
    counts = {"total": 10, "completed": 4, "failed": 1, "status": "in_progress"}
    times = {"created_at": NOW_MS, "expires_at": NOW_MS + 1000, "claimed_until": 0}
    return {"id": batch_id, "tenant": tenant, "endpoint": "/v1/responses", "input_file_id": "file-1"} | (
        counts | times | more
    )


def attempt_row(tenant: str, job_id: str, offset: int, error: str | None, **more: Any) -> dict[str, Any]:
    details = {"origin": "https://a.example", "status": 503, "error": error, "attempt": 1, **more}
    place = {"topic_partition": 0, "topic_offset": offset, "at": NOW_MS + offset}
    return {**place, "tenant": tenant, "job_id": job_id, "webhook_id": f"msg_{job_id}", "details": details}
