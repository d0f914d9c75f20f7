"""Rows of webhook endpoints, and the types of the events that they may take.

`batch.*` and `response.*` are OpenAI's, with the object's id as their data. `inference.*` are Postback's own, with the
whole result. Source: OpenAI's API reference, "Webhook events". Every function of a connection runs in a change or a
query of the store; times are Unix milliseconds.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints
from sqlalchemy import Connection, Row, func, select

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


class TooManyEndpoints(Exception):  # noqa: N818 - named after the refusal
    """The tenant has as many endpoints as it may have."""


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
    """Write a new endpoint. Raises TooManyEndpoints."""
    mine = select(func.count()).select_from(table).where(table.c.tenant == tenant)
    if connection.execute(mine).scalar_one() >= MOST_ENDPOINTS:
        raise TooManyEndpoints
    identifier = f"we_{now_ms:012x}{secrets.token_hex(10)}"
    row = {"id": identifier, "tenant": tenant, "secret_version": 1, "created_at": now_ms, "updated_at": now_ms}
    connection.execute(table.insert().values(**row, **terms.model_dump()))
    return connection.execute(select(table).where(table.c.id == identifier)).one()


def find(connection: Connection, tenant: str, identifier: str) -> EndpointRow | None:
    """Return an endpoint; None if the tenant has no such endpoint."""
    return connection.execute(select(table).where(*_this(tenant, identifier))).one_or_none()


def page(connection: Connection, tenant: str, limit: int, after: str | None) -> tuple[Sequence[EndpointRow], bool]:
    """Return endpoints after the id `after`, newest first, and True if there are more."""
    conditions = [table.c.tenant == tenant, *([] if after is None else [table.c.id < after])]
    found = select(table).where(*conditions).order_by(table.c.id.desc()).limit(limit + 1)
    rows = connection.execute(found).all()
    return rows[:limit], len(rows) > limit


def update(connection: Connection, row: EndpointRow, terms: EndpointTerms, now_ms: int) -> EndpointRow:
    """Replace an endpoint's terms. Equal terms change nothing."""
    if terms_of(row) == terms:
        return row
    changed = _changed(connection, row.tenant, row.id, **terms.model_dump(), updated_at=now_ms)
    return row if changed is None else changed


def rotate(connection: Connection, tenant: str, identifier: str, now_ms: int, *, overlap: bool) -> EndpointRow | None:
    """Give an endpoint its next secret, and return the endpoint; None if the tenant has no such endpoint.

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


def delete(connection: Connection, tenant: str, identifier: str) -> bool:
    """Delete an endpoint. Events that are on their way are still sent. False if the tenant has no such endpoint."""
    return connection.execute(table.delete().where(*_this(tenant, identifier))).rowcount == 1


def versions(row: EndpointRow, now_ms: int) -> tuple[int, ...]:
    """Return the versions of the endpoint's secret that sign now, newest first."""
    overlaps = row.previous_until is not None and now_ms < row.previous_until
    return (row.secret_version, row.secret_version - 1) if overlaps else (row.secret_version,)


def terms_of(row: EndpointRow) -> EndpointTerms:
    """Return the members that the tenant set."""
    return EndpointTerms.model_construct(**{name: getattr(row, name) for name in EndpointTerms.model_fields})


def _this(tenant: str, identifier: str) -> tuple[Any, Any]:
    return table.c.tenant == tenant, table.c.id == identifier


def _changed(connection: Connection, tenant: str, identifier: str, **values: Any) -> EndpointRow | None:
    connection.execute(table.update().where(*_this(tenant, identifier)).values(**values))
    return find(connection, tenant, identifier)
