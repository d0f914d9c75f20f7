"""Retention: old rows are deleted in steps, and younger rows stay."""

from __future__ import annotations

from sqlalchemy import Table, func, select

from gateway.store.store import Store
from gateway.store.tables import events, idempotency, job_attempts, jobs
from gateway.view.retention import TOGETHER, Retention
from telemetry.hand_clock import HandClock

DAY_MS = 24 * 3600 * 1000
NOW_MS = 100 * DAY_MS


def job(job_id: str, created_days: int, finished_days: int | None) -> dict[str, object]:
    """A job that was created and finished this many days ago."""
    return {
        "tenant": "acme",
        "job_id": job_id,
        "url": "/v1/jobs",
        "status": "queued" if finished_days is None else "succeeded",
        "created_at": NOW_MS - created_days * DAY_MS,
        "finished_at": None if finished_days is None else NOW_MS - finished_days * DAY_MS,
        "metadata": {},
    }


def fill(store: Store) -> None:
    old_jobs = [job(f"old{number}", 31, 31) for number in range(TOGETHER + 10)]
    others = [job("young", 31, 29), job("waiting", 37, None), job("lost", 39, None)]
    old, young = NOW_MS - 31 * DAY_MS, NOW_MS - 29 * DAY_MS
    told = {"tenant": "acme", "type": "t", "object_id": "o", "data": b""}
    attempt = {"topic_partition": 0, "tenant": "acme", "job_id": "j", "webhook_id": "w", "details": {}}
    key = {"tenant": "acme", "fingerprint": b"", "status": 200, "response": b""}
    rows: list[tuple[Table, list[dict[str, object]]]] = [
        (jobs, [*old_jobs, *others]),
        (events, [{**told, "number": 1, "at": old}, {**told, "number": 2, "at": young}]),
        (job_attempts, [{**attempt, "topic_offset": 1, "at": old}, {**attempt, "topic_offset": 2, "at": young}]),
        (
            idempotency,
            [
                {**key, "key": "old", "created_at": NOW_MS - 3 * DAY_MS},
                {**key, "key": "young", "created_at": NOW_MS - DAY_MS - 1},
            ],
        ),
    ]
    for table, values in rows:
        store.write_now(lambda connection, table=table, values=values: connection.execute(table.insert(), values))  # type: ignore[misc]


def count(store: Store, table: Table) -> int:
    return store.read_now(lambda connection: connection.scalar(select(func.count()).select_from(table)) or 0)


def test_old_rows_are_removed_and_young_ones_stay(store: Store) -> None:
    fill(store)
    retention = Retention(store, 30, HandClock(NOW_MS / 1000))
    assert retention.remove_old() == TOGETHER + 10 + 1 + 1 + 1 + 1
    kept = set(store.read_now(lambda connection: connection.scalars(select(jobs.c.job_id)).all()))
    assert kept == {"young", "waiting"}
    assert [count(store, table) for table in (events, job_attempts, idempotency)] == [1, 1, 1]
    assert retention.remove_old() == 0
