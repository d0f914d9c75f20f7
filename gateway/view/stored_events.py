"""Reads of a tenant's events, by their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, or_, select

from gateway.store.tables import events

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
    """Return at most `limit` events after this number. `types` are names or prefixes with ALL_BELOW; none means all."""
    end = last_number(connection, tenant)
    conditions: list[Any] = [events.c.tenant == tenant, events.c.number > number, events.c.number <= end]
    if types:
        conditions.append(or_(*map(_is_of, types)))
    columns = (events.c.number, events.c.type, events.c.data)
    rows = connection.execute(select(*columns).where(*conditions).order_by(events.c.number).limit(limit)).all()
    found = [StoredEvent(row.number, row.type, row.data) for row in rows]
    return EventPage(found, found[-1].number if len(found) == limit else max(end, number))


def _is_of(name: str) -> Any:
    if name.endswith(ALL_BELOW):
        return events.c.type.startswith(name.removesuffix("*"), autoescape=True)
    return events.c.type == name
