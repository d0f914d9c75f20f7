"""Rows of webhook endpoints, and the types of the events that they may take.

`batch.*` and `response.*` are OpenAI's, with the object's id as their data. `inference.*` are Postback's own, with the
whole result. Source: OpenAI's API reference, "Webhook events". Every function of a connection runs in a change or a
query of the store; times are Unix milliseconds.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Final

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints
from sqlalchemy import Connection, Row, func, select

from gateway.errors import conflict
from gateway.paging import PageQuery, RowPage, find_row, read_page
from gateway.store.tables import webhook_endpoints as table
from schemas.bounded import BoundedModel
from schemas.outcome import Outcome
from schemas.result import Result
from workers.delivery.endpoint_events import MOST_A_SECOND, MOST_HEADERS, is_reserved

BATCH_TYPES: Final = ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled")
RESPONSE_TYPES: Final = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
INFERENCE_TYPES: Final = tuple(f"inference.{outcome}" for outcome in Outcome)
EVENT_TYPES: Final = (*BATCH_TYPES, *RESPONSE_TYPES, *INFERENCE_TYPES)


def response_type(result: Result) -> str:
    """Return the type of the event for a response with this result."""
    if result.outcome is Outcome.CANCELLED:
        return "response.cancelled"
    if result.outcome is not Outcome.SUCCEEDED:
        return "response.failed"
    return "response.incomplete" if result.finish_reason == "length" else "response.completed"


MOST_ENDPOINTS = 20
"""Limit on a tenant's endpoints, because each endpoint gets a copy of each event."""
OVERLAP_MS = 24 * 3600 * 1000
"""The time for which an old secret signs beside its successor, if the tenant asks for it."""

EndpointRow = Row[Any]


def _known(kind: str) -> str:
    if kind not in EVENT_TYPES:
        raise ValueError(f"is none of {', '.join(EVENT_TYPES)}")
    return kind


def _once(kinds: list[str]) -> list[str]:
    return list(dict.fromkeys(kinds))


def _own(headers: dict[str, str]) -> dict[str, str]:
    lowered = {name.lower(): value for name, value in headers.items()}
    if len(lowered) < len(headers) or any(map(is_reserved, lowered)):
        raise ValueError("has a header twice, or a header that the sender sets")
    return lowered


EventType = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": list(EVENT_TYPES)})]
_HeaderName = Annotated[str, StringConstraints(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$")]
_HeaderValue = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e](?:[\x20-\x7e]{0,1022}[\x21-\x7e])?$")]


class EndpointTerms(BoundedModel):
    """The members of an endpoint that its tenant sets."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """A name for people."""
    url: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    """The URL to which events are POSTed."""
    event_types: Annotated[list[EventType], Field(min_length=1, max_length=64), AfterValidator(_once)]
    """The types of events that the endpoint takes."""
    headers: Annotated[dict[_HeaderName, _HeaderValue], Field(max_length=MOST_HEADERS), AfterValidator(_own)] = Field(
        default={}
    )
    """HTTP headers of each request to the endpoint. Answers hide their values."""
    enabled: bool = True
    """False for an endpoint to which nothing is sent."""
    rate_limit: Annotated[int, Field(ge=1, le=MOST_A_SECOND)] | None = None
    """The most callbacks a second; null removes the limit."""


def create(connection: Connection, tenant: str, terms: EndpointTerms, now_ms: int) -> EndpointRow:
    """Write a new endpoint. Raises ApiError (409) for a tenant that has as many as it may have."""
    mine = select(func.count()).select_from(table).where(table.c.tenant == tenant)
    if connection.execute(mine).scalar_one() >= MOST_ENDPOINTS:
        message = f"The tenant has {MOST_ENDPOINTS} webhook endpoints, the most it may have; delete one first."
        raise conflict("too_many_webhook_endpoints", message)
    identifier = f"we_{now_ms:012x}{secrets.token_hex(10)}"
    row = {"id": identifier, "tenant": tenant, "secret_version": 1, "created_at": now_ms, "updated_at": now_ms}
    connection.execute(table.insert().values(**row, **terms.model_dump()))
    return find(connection, tenant, identifier)


def find(connection: Connection, tenant: str, identifier: str) -> EndpointRow:
    """Return a tenant's endpoint. Raises ApiError (404)."""
    return find_row(connection, table, "webhook_endpoint", tenant, identifier)


def page(connection: Connection, tenant: str, query: PageQuery) -> RowPage:
    """Return one page of a tenant's endpoints."""
    return read_page(connection, table, [table.c.tenant == tenant], query)


def update(connection: Connection, row: EndpointRow, terms: EndpointTerms, now_ms: int) -> EndpointRow:
    """Replace an endpoint's terms. Equal terms change nothing."""
    if terms_of(row) == terms:
        return row
    return _changed(connection, row.tenant, row.id, **terms.model_dump(), updated_at=now_ms)


def rotate(connection: Connection, tenant: str, identifier: str, now_ms: int, *, overlap: bool) -> EndpointRow:
    """Give an endpoint its next secret, and return the endpoint. Raises ApiError (404).

    The old secret ends at once, or signs beside the new one for OVERLAP_MS.
    """
    return _changed(
        connection,
        tenant,
        identifier,
        secret_version=table.c.secret_version + 1,
        previous_until=now_ms + OVERLAP_MS if overlap else None,
        updated_at=now_ms,
    )


def delete(connection: Connection, tenant: str, identifier: str) -> None:
    """Delete an endpoint. Events that are on their way are still sent. Raises ApiError (404)."""
    find(connection, tenant, identifier)
    connection.execute(table.delete().where(table.c.id == identifier))


def versions(row: EndpointRow, now_ms: int) -> tuple[int, ...]:
    """Return the versions of the endpoint's secret that sign now, newest first."""
    overlaps = row.previous_until is not None and now_ms < row.previous_until
    return (row.secret_version, row.secret_version - 1) if overlaps else (row.secret_version,)


def terms_of(row: EndpointRow) -> EndpointTerms:
    """Return the members that the tenant set."""
    return EndpointTerms.model_construct(**{name: getattr(row, name) for name in EndpointTerms.model_fields})


def _changed(connection: Connection, tenant: str, identifier: str, **values: Any) -> EndpointRow:
    this = table.c.tenant == tenant, table.c.id == identifier
    connection.execute(table.update().where(*this).values(**values))
    return find(connection, tenant, identifier)
