"""Quotas: work that a tenant has queued, counted in jobs (lines) and tokens.

Work is reserved in the transaction that accepts it, and given back in the transaction that stores its result. Each job
and each batch keeps its own reservation in its row, so that a repeated result gives nothing back twice.
Only tenants with a quota reserve work, so a request of a tenant without a quota writes no reservation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from sqlalchemy import Connection, case, func, select

from gateway.access.tenant_settings import TenantSettings
from gateway.errors import NO_RETRY, ApiError
from gateway.store.dialects import insert, pair_in
from gateway.store.tables import batches, jobs, quotas

BYTES_OF_A_TOKEN = 4
"""Approximate bytes of text for one token: English text has four characters a token."""


class QuotaExceeded(ApiError):  # noqa: N818 - it names what happened
    """The tenant may queue no more work at present, or may never queue so much."""

    def __init__(self, name: str, limit: int, queued: int, more: int) -> None:
        """`name` is the kind of work, such as `jobs`."""
        if more > limit:
            said = f"The request counts as {more} {name}, and the tenant may have {limit} queued; send less at once."
            super().__init__(400, "quota_too_small", said)
            return
        said = (
            f"The tenant has {queued} {name} queued and may have {limit}; {more} more do not fit. Send them again when "
            "some are answered."
        )
        super().__init__(429, "quota_exceeded", said, headers={**NO_RETRY, "retry-after": "60"})


class Work(NamedTuple):
    """Work to reserve."""

    lines: int
    tokens: int


def tokens_of(value_bytes: int, max_tokens: int) -> int:
    """Return the tokens that a job of this size may use, as the quota counts them."""
    return -(-value_bytes // BYTES_OF_A_TOKEN) + max_tokens


def total_of(works: Sequence[Work]) -> Work:
    """Return the sum of the works' lines and of their tokens."""
    return Work(sum(work.lines for work in works), sum(work.tokens for work in works))


def has_quota(settings: TenantSettings) -> bool:
    """True if the tenant's work is counted."""
    return settings.queued_lines is not None or settings.queued_tokens is not None


def reserve(connection: Connection, tenant: str, settings: TenantSettings, work: Work) -> None:
    """Reserve work for a tenant with a quota. Raises QuotaExceeded.

    The caller must write the reservation into the rows of the jobs, or of the batch, in the same transaction.
    """
    require_room(settings, queued_work(connection, tenant), work)
    add_queued(connection, tenant, work)


def require_room(settings: TenantSettings, queued: Work, work: Work) -> None:
    """Raise QuotaExceeded if more work does not fit beside the queued work."""
    for name, limit, now, more in (
        ("jobs", settings.queued_lines, queued.lines, work.lines),
        ("tokens", settings.queued_tokens, queued.tokens, work.tokens),
    ):
        if limit is not None and now + more > limit:
            raise QuotaExceeded(name, limit, now, more)


def add_queued(connection: Connection, tenant: str, work: Work) -> None:
    """Add work to the tenant's reservations."""
    connection.execute(
        insert(connection, quotas).on_conflict_do_update(
            index_elements=["tenant"],
            set_={
                "queued_lines": quotas.c.queued_lines + work.lines,
                "queued_tokens": quotas.c.queued_tokens + work.tokens,
            },
        ),
        {"tenant": tenant, "queued_lines": work.lines, "queued_tokens": work.tokens},
    )


def queued_work(connection: Connection, tenant: str) -> Work:
    """Return the work that the tenant has reserved."""
    row = connection.execute(select(quotas).where(quotas.c.tenant == tenant)).one_or_none()
    return Work(row.queued_lines, row.queued_tokens) if row is not None else Work(0, 0)


def release(
    connection: Connection,
    of_jobs: Sequence[tuple[str, str]] = (),
    of_batches: Mapping[tuple[str, str], int | None] = MappingProxyType({}),
) -> None:
    """Give back the reservations of single jobs, by tenant and id, which get their first result or are removed.

    Also give back those of a number of lines of batches, by tenant and id, which get their first results; None gives
    back all that the batch still has, for lines that ended without a result.
    """
    of_lines = [
        (tenant, _of_batch(connection, tenant, batch_id, lines)) for (tenant, batch_id), lines in of_batches.items()
    ]
    _give_back(connection, [*of_lines, *_of_jobs(connection, of_jobs)])


def _of_jobs(connection: Connection, keys: Sequence[tuple[str, str]]) -> list[tuple[str, Work]]:
    """Clear the reservations in the rows of the jobs in `keys`, and return them with their tenants.

    Most jobs have none.
    """
    if not keys:
        return []
    named = pair_in(connection, (jobs.c.tenant, jobs.c.job_id), set(keys))
    these = named & jobs.c.reserved_tokens.is_not(None)
    found = connection.execute(select(jobs.c.tenant, jobs.c.reserved_tokens).where(these)).all()
    if found:
        connection.execute(jobs.update().where(these).values(reserved_tokens=None))
    return [(tenant, Work(1, tokens)) for tenant, tokens in found]


def _of_batch(connection: Connection, tenant: str, batch_id: str, lines: int | None) -> Work:
    """Subtract this number of lines, or all, from the batch's reservation, and return the work that was subtracted.

    Each line has an equal share of the tokens.
    """
    this = (batches.c.tenant == tenant) & (batches.c.id == batch_id)
    row = connection.execute(select(batches.c.reserved_lines, batches.c.reserved_tokens).where(this)).one_or_none()
    if row is None or not row.reserved_lines:
        return Work(0, 0)
    taken = row.reserved_lines if lines is None else min(lines, row.reserved_lines)
    work = Work(taken, row.reserved_tokens * taken // row.reserved_lines)
    connection.execute(
        batches.update()
        .where(this)
        .values(reserved_lines=row.reserved_lines - taken, reserved_tokens=row.reserved_tokens - work.tokens)
    )
    return work


def _by_tenant(works: Iterable[tuple[str, Work]]) -> dict[str, Work]:
    """Return the sum of each tenant's works; tenants without work are left out."""
    sums: dict[str, Work] = {}
    for tenant, work in works:
        if work != Work(0, 0):
            sums[tenant] = total_of([sums.get(tenant, Work(0, 0)), work])
    return sums


def _give_back(connection: Connection, works: Iterable[tuple[str, Work]]) -> None:
    """Lower the tenants' counts, never below zero."""
    for tenant, work in _by_tenant(works).items():
        lines, tokens = quotas.c.queued_lines - work.lines, quotas.c.queued_tokens - work.tokens
        connection.execute(
            quotas.update()
            .where(quotas.c.tenant == tenant)
            .values(queued_lines=case((lines > 0, lines), else_=0), queued_tokens=case((tokens > 0, tokens), else_=0))
        )


def recount(connection: Connection) -> None:
    """Rebuild all reservations from the rows of jobs and batches, after rows were removed or restored."""
    of_jobs = select(jobs.c.tenant, func.count(), func.sum(jobs.c.reserved_tokens)).where(
        jobs.c.reserved_tokens.is_not(None)
    )
    of_batches = select(
        batches.c.tenant, func.sum(batches.c.reserved_lines), func.sum(batches.c.reserved_tokens)
    ).where(batches.c.reserved_lines.is_not(None))
    kept = [
        (tenant, Work(int(lines), int(tokens)))
        for query, table in ((of_jobs, jobs), (of_batches, batches))
        for tenant, lines, tokens in connection.execute(query.group_by(table.c.tenant))
    ]
    connection.execute(quotas.delete())
    for tenant, work in _by_tenant(kept).items():
        connection.execute(
            quotas.insert(), {"tenant": tenant, "queued_lines": work.lines, "queued_tokens": work.tokens}
        )
