"""Events for `GET /v1/events`, numbered in the order of their commits.

So a query for `number > last` misses no event.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from sqlalchemy import Connection

from gateway.store.dialects import insert, write_rows
from gateway.store.meta import set_value, value_of
from gateway.store.tables import events

_COUNTER = "events"


class NewEvent(NamedTuple):
    """An event to store: a row of `events` without its number."""

    tenant: str
    type: str
    """The event's type, such as `inference.succeeded` or `batch.completed`."""
    object_id: str
    """The id of the job or of the batch."""
    at: int
    """Unix milliseconds."""
    data: bytes | None = None
    """The event's JSON, as in a webhook's body; None if the event's data are the result, which is in the job's row."""
    webhook_id: str | None = None
    """The `webhook-id` of a result's callback."""
    lines: int = 1
    """The number of events for which the row stands; the last one of them has the row's number."""


def write_events(connection: Connection, new: Sequence[NewEvent]) -> None:
    """Store events with the next numbers.

    Write transactions of all processes run one after the other, so numbers are in the order of commits.
    """
    if not new:
        return
    numbers = [*accumulate((event.lines for event in new), initial=int(value_of(connection, _COUNTER) or 0))]
    rows = [{**event._asdict(), "number": number} for number, event in zip(numbers[1:], new, strict=True)]
    for row in rows:
        del row["lines"]
    write_rows(connection, insert(connection, events), rows)
    set_value(connection, _COUNTER, str(numbers[-1]))
