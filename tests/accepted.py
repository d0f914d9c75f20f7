"""Accepts jobs in a transaction, as the request of one client does."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from gateway.accept.idempotency import StoredAnswer
from gateway.accept.jobs import JobsRequest, NewJob
from gateway.access import Principal
from gateway.access.tenant_settings import TenantSettings
from schemas.topics import Topics
from telemetry.clock import Clock, SystemClock

_CLOCK = SystemClock()


def accept_jobs(
    connection: Connection,
    principal: Principal,
    new: Sequence[NewJob],
    topics: Topics,
    clock: Clock = _CLOCK,
    settings: TenantSettings | None = None,
) -> None:
    """Accept jobs without a key, as `JobsRequest` does."""
    JobsRequest(principal, None, b"", new, StoredAnswer(202, b""), topics, clock, settings)(connection)
