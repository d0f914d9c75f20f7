"""Creates, finds, lists and cancels rows of batches, and changes their status in steps.

Every function runs in a change or a query of the store; times are Unix milliseconds. A step is compare-and-set on the
status, so that of two processes one wins. Source: OpenAI's API reference, "Batch".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, StringConstraints, WithJsonSchema
from sqlalchemy import Connection, Row

from gateway.accept.cancelling import put_control
from gateway.batches import files
from gateway.batches.checking import MOST_BYTES
from gateway.errors import ApiError, conflict
from gateway.paging import PageQuery, RowPage, find_row, read_page
from gateway.store.states import (
    CANCELLABLE,
    CANCELLED,
    CANCELLING,
    COMPLETED,
    EXPIRED,
    VALIDATING,
)
from gateway.store.tables import batches
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


def step(connection: Connection, identifier: str, status: str, following: str, **values: Any) -> bool:
    """Change the status if it is still `status`, and let other processes claim the batch. False if it was another."""
    changed = batches.update().where(batches.c.id == identifier, batches.c.status == status)
    return connection.execute(changed.values(status=following, claimed_until=0, **values)).rowcount == 1


def end(connection: Connection, row: BatchRow, ending: str, on_ended: OnEnded, **values: Any) -> bool:
    """End a batch that still has the status that `row` has, and tell it. False if it has another status by now."""
    if not step(connection, row.id, row.status, ending, **values):
        return False
    on_ended(connection, find(connection, row.tenant, row.id))
    return True


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
