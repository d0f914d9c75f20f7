"""Reads of a tenant's events, by their numbers.

The event of a result is made from the result in its job's row. A job may get another result, as after a redrive. Events
of another outcome are then left out, and events of the same outcome show the last result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, func, or_, select

from gateway.store.tables import events, jobs
from gateway.view.offsets import being_rebuilt
from schemas.codec import InvalidResult, read_result
from schemas.event import event_type, stored_event_body

ALL_BELOW = ".*"
"""The end of a filter for all types below a prefix, such as `batch.*`."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event. `data` is its JSON."""

    number: int
    type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events in the order of their numbers. Every event up to `read_to` was looked at."""

    events: Sequence[StoredEvent]
    read_to: int


def last_number(connection: Connection, tenant: str) -> int:
    """Return the number of the tenant's newest event; 0 if there is none."""
    found: int | None = connection.execute(select(func.max(events.c.number)).where(events.c.tenant == tenant)).scalar()
    return found or 0


def events_after(connection: Connection, tenant: str, number: int, types: Sequence[str], limit: int) -> EventPage:
    """Return at most `limit` events after this number.

    `types` are names, or prefixes with ALL_BELOW; without types, all events match.
    """
    if being_rebuilt(connection):
        return EventPage((), number)  # no events yet, because results are missing until the rebuild ends
    end = last_number(connection, tenant)
    conditions: list[Any] = [events.c.tenant == tenant, events.c.number > number, events.c.number <= end]
    if types:
        conditions.append(or_(*map(_is_of, types)))
    columns = (events.c.number, events.c.type, events.c.object_id, events.c.webhook_id, events.c.data, jobs.c.result)
    of_a_result = and_(events.c.data.is_(None), jobs.c.tenant == events.c.tenant, jobs.c.job_id == events.c.object_id)
    wanted = select(*columns).select_from(events.outerjoin(jobs, of_a_result)).where(*conditions)
    rows = connection.execute(wanted.order_by(events.c.number).limit(limit)).all()
    found = [StoredEvent(row.number, row.type, data) for row in rows if (data := _data(row, tenant)) is not None]
    return EventPage(found, rows[-1].number if len(rows) == limit else max(end, number))


def _data(row: Any, tenant: str) -> bytes | None:
    """Return the JSON of an event; None if its result is gone, or was written by another version."""
    if row.data is not None or row.result is None:
        data: bytes | None = row.data
        return data
    try:
        result = read_result(row.result)
    except InvalidResult:
        return None
    if event_type(result.outcome) != row.type:
        return None
    return stored_event_body(result, row.result, row.webhook_id or f"msg_{row.object_id}", tenant)


def _is_of(name: str) -> Any:
    if name.endswith(ALL_BELOW):
        return events.c.type.startswith(name.removesuffix("*"), autoescape=True)
    return events.c.type == name
