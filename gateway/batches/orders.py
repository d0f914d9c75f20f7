"""Creates, finds, lists and cancels rows of batches, and changes their status in steps.

Every function runs in a change or a query of the store; times are Unix milliseconds. A step is compare-and-set on the
status, so that of two processes one wins. Source: OpenAI's API reference, "Batch".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, StringConstraints, WithJsonSchema
from sqlalchemy import Connection, Row, and_, or_, select

from gateway.accept.cancelling import put_control
from gateway.accept.outbox import put_record
from gateway.batches import files
from gateway.batches.checking import MOST_BYTES, Checked
from gateway.batches.paging import PageQuery, RowPage, find_row, read_page
from gateway.batches.ranges import LineRange, write_range
from gateway.errors import ApiError, conflict
from gateway.store.states import (
    CANCELLABLE,
    CANCELLED,
    CANCELLING,
    COMPLETED,
    ENDED,
    EXPIRED,
    FAILED,
    FINALIZING,
    IN_PROGRESS,
    VALIDATING,
)
from gateway.store.tables import batches
from schemas import topics as names
from schemas.bounded import WireModel
from schemas.openai import URLS
from schemas.topics import Topics

WINDOW: Final = "24h"
WINDOW_MS: Final = 24 * 3600 * 1000
SKIP_INVALID: Final = "postback.skip_invalid"
"""The key of the metadata by which a batch skips lines that are no jobs: they fail, and the others run."""
_Key = Annotated[str, StringConstraints(max_length=64)]
_Value = Annotated[str, StringConstraints(max_length=512)]

BatchRow = Row[Any]
OnEnded = Callable[[Connection, BatchRow], None]
"""A function that is called with the row of a batch, in the transaction that ends this batch."""


def _endpoint(url: str) -> str:
    if url not in URLS:
        raise ValueError(f"is none of {', '.join(URLS)}")
    return url


class BatchRequest(WireModel):
    """The body of a request to create a batch."""

    input_file_id: str
    endpoint: Annotated[str, AfterValidator(_endpoint), WithJsonSchema({"enum": list(URLS)})]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[_Key, _Value], Field(max_length=16)] | None = None
    output_expires_after: files.ExpiresAfter | None = None


def skips_invalid(row: BatchRow) -> bool:
    """True if the batch runs its other lines when some lines are no jobs."""
    return (row.metadata or {}).get(SKIP_INVALID) == "true"


def create(
    connection: Connection,
    identifier: str,
    tenant: str,
    terms: BatchRequest,
    now_ms: int,
    *,
    submitted_by: str | None = None,
    traceparent: str | None = None,
) -> BatchRow:
    """Write the row of a new batch, which the clerk will check. Raises ApiError (400, 404)."""
    file = files.find(connection, tenant, terms.input_file_id, now_ms, lock=True)
    if file.purpose != "batch":
        message = f"The file's purpose is `{file.purpose}`; upload it with the purpose `batch`."
        raise ApiError(400, "invalid_file_purpose", message, "input_file_id")
    if file.bytes > MOST_BYTES:
        message = f"The file has more than {MOST_BYTES} bytes; split it."
        raise ApiError(400, "file_too_large", message, "input_file_id")
    row = {
        "id": identifier,
        "tenant": tenant,
        "endpoint": terms.endpoint,
        "input_file_id": terms.input_file_id,
        "status": VALIDATING,
        "total": 0,
        "completed": 0,
        "failed": 0,
        "metadata": terms.metadata,
        "created_at": now_ms,
        "expires_at": now_ms + WINDOW_MS,
        "output_expires_seconds": files.seconds_of(terms.output_expires_after),
        "claimed_until": 0,
        "traceparent": traceparent,
        "submitted_by": submitted_by,
    }
    connection.execute(batches.insert().values(**row))
    return find(connection, tenant, identifier)


def find(connection: Connection, tenant: str, identifier: str) -> BatchRow:
    """Return the row of a tenant's batch. Raises ApiError (404)."""
    return find_row(connection, batches, "batch", tenant, identifier)


def page(connection: Connection, tenant: str, query: PageQuery) -> RowPage:
    """Return one page of a tenant's batches."""
    return read_page(connection, batches, [batches.c.tenant == tenant], query)


def cancel(connection: Connection, tenant: str, identifier: str, now_ms: int, topics: Topics) -> BatchRow:
    """Begin to cancel a batch: write one record that cancels all of its jobs.

    Raises ApiError (404; 409 for a batch that has ended).

    A batch that is already being cancelled is not changed.
    """
    row = find(connection, tenant, identifier)
    if row.status == CANCELLING:
        return row
    if row.status not in CANCELLABLE or not step(connection, identifier, row.status, CANCELLING, cancelling_at=now_ms):
        message = f"Batch {identifier} is `{row.status}`, and cannot be cancelled."
        raise conflict("batch_not_cancellable", message, "batch_id")
    put_control(connection, tenant, identifier, topics, now_ms)
    return find(connection, tenant, identifier)


def begin(connection: Connection, row: BatchRow, checked: Checked, now_ms: int, topics: Topics) -> bool:
    """Put a checked batch to work: change its status, and write a record for each range.

    Returns False if the batch was cancelled.
    """
    said = {"total": checked.total, "in_progress_at": now_ms}
    if not step(connection, row.id, VALIDATING, IN_PROGRESS, **said):
        return False
    headers = [(names.TENANT, row.tenant.encode()), (names.DEADLINE, str(row.expires_at).encode())]
    if row.traceparent is not None:
        headers.append((names.TRACEPARENT, row.traceparent.encode()))
    for each in checked.ranges:
        ids = {"tenant": row.tenant, "batch_id": row.id, "file_id": row.input_file_id}
        record = LineRange(**ids, **each.model_dump())
        put_record(connection, topics.batch_requests, record.key, write_range(record), headers)
    return True


def refuse(connection: Connection, row: BatchRow, checked: Checked, now_ms: int, on_ended: OnEnded) -> bool:
    """End a batch whose file has lines that are no jobs. False if the batch was cancelled meanwhile."""
    errors = [error.json for error in checked.errors]
    if not step(connection, row.id, VALIDATING, FAILED, errors=errors, failed_at=now_ms):
        return False
    on_ended(connection, find(connection, row.tenant, row.id))
    return True


def step(connection: Connection, identifier: str, status: str, following: str, **values: Any) -> bool:
    """Change the status if it is still `status`, and let other processes claim the batch. False if it was another."""
    changed = batches.update().where(batches.c.id == identifier, batches.c.status == status)
    return connection.execute(changed.values(status=following, claimed_until=0, **values)).rowcount == 1


def due(connection: Connection, now_ms: int, late_ms: int, cancelled_ms: int) -> list[BatchRow]:
    """Return batches that need a step of the clerk, and that no process has claimed.

    A running batch needs a step if it expires before `late_ms`. A batch cancelled before `cancelled_ms` waits for no
    more results.
    """
    answered = batches.c.completed + batches.c.failed >= batches.c.total
    waiting = or_(
        batches.c.status.in_((VALIDATING, FINALIZING)),
        and_(batches.c.status == IN_PROGRESS, batches.c.expires_at < late_ms),
        and_(batches.c.status == CANCELLING, or_(answered, batches.c.cancelling_at <= cancelled_ms)),
    )
    statement = select(batches).where(batches.c.claimed_until <= now_ms, batches.c.status.not_in(ENDED), waiting)
    return list(connection.execute(statement.order_by(batches.c.id).limit(100)))


def claim(connection: Connection, identifier: str, now_ms: int, until_ms: int) -> BatchRow | None:
    """Claim a batch for this process.

    Returns the batch's row; None if another process has claimed the batch, or the batch has ended.
    """
    free = and_(batches.c.id == identifier, batches.c.claimed_until <= now_ms, batches.c.status.not_in(ENDED))
    if connection.execute(batches.update().where(free).values(claimed_until=until_ms)).rowcount == 0:
        return None
    return connection.execute(select(batches).where(batches.c.id == identifier)).one()


def renew(connection: Connection, row: BatchRow, until_ms: int) -> None:
    """Extend a claim to `until_ms`, if the batch still has the status that `row` has.

    An `until_ms` of 0 releases the claim.
    """
    claimed = and_(batches.c.id == row.id, batches.c.status == row.status)
    connection.execute(batches.update().where(claimed).values(claimed_until=until_ms))


def batch_object(row: BatchRow) -> dict[str, Any]:
    """Return the JSON object of a batch, in OpenAI's form."""
    return {
        "id": row.id,
        "object": "batch",
        "endpoint": row.endpoint,
        "errors": None if row.errors is None else {"object": "list", "data": row.errors},
        "input_file_id": row.input_file_id,
        "completion_window": WINDOW,
        "status": row.status,
        "output_file_id": row.output_file_id,
        "error_file_id": row.error_file_id,
        **{name: _seconds(getattr(row, name)) for name in _TIMES},
        "request_counts": {"total": row.total, "completed": row.completed, "failed": row.failed},
        "metadata": row.metadata,
        "model": row.model,
        "usage": row.usage,
    }


ENDED_AT: Final = {COMPLETED: "completed_at", EXPIRED: "expired_at", CANCELLED: "cancelled_at"}
_TIMES = (
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


def _seconds(at_ms: int | None) -> int | None:
    return None if at_ms is None else at_ms // 1000
