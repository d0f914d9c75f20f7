"""Callbacks whose last attempt failed, from the rows of attempts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, select

from gateway.store.tables import job_attempts
from gateway.view.trace import Attempt, attempt_of

MOST_LOOKED_AT: Final = 2_000
"""The number of newest attempts that the page searches."""
MOST_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class FailedCallback:
    """A callback whose last attempt failed. Delivery may still try the callback again."""

    job_id: str
    last: Attempt


@dataclass(frozen=True, slots=True)
class FailedCallbacks:
    """The failed callbacks of a tenant, the newest attempt first."""

    shown: Sequence[FailedCallback]
    found: int
    """The number of failed callbacks, including those beyond MOST_SHOWN."""
    is_whole: bool
    """False if there are older attempts, which the page did not search."""


def failed_callbacks(connection: Connection, tenant: str) -> FailedCallbacks:
    """Search the tenant's newest attempts, and return the callbacks whose last attempt failed."""
    newest = select(job_attempts).where(job_attempts.c.tenant == tenant)
    order = (job_attempts.c.at.desc(), job_attempts.c.topic_offset.desc())
    rows = connection.execute(newest.order_by(*order).limit(MOST_LOOKED_AT)).all()
    seen: set[tuple[str, str, str | None]] = set()
    failed: list[FailedCallback] = []
    for row in rows:
        attempt = attempt_of(row)
        callback = (row.job_id, row.webhook_id, attempt.origin)
        if callback not in seen:
            seen.add(callback)
            if attempt.error is not None:
                failed.append(FailedCallback(row.job_id, attempt))
    return FailedCallbacks(failed[:MOST_SHOWN], len(failed), len(rows) < MOST_LOOKED_AT)
