"""Events for `GET /v1/events`, numbered in the order of their commits.

So a query for `number > last` misses no event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from sqlalchemy import Connection

from gateway.store.dialects import insert, write_rows
from gateway.store.meta import set_value, value_of
from gateway.store.tables import events

_COUNTER = "events"


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to store."""

    tenant: str
    type: str
    """The event's type, such as `inference.succeeded` or `batch.completed`."""
    object_id: str
    """The id of the job or of the batch."""
    at_ms: int
    data: bytes | None = None
    """The event's JSON, as in a webhook's body; None if the event's data are the result, which is in the job's row."""
    webhook_id: str | None = None
    """The `webhook-id` of a result's callback."""
    count: int = 1
    """The number of events for which the row stands; the last one of them has the row's number."""


def write_events(connection: Connection, new: Sequence[NewEvent]) -> None:
    """Store events with the next numbers.

    Write transactions of all processes run one after the other, so numbers are in the order of commits.
    """
    if not new:
        return
    numbers = [*accumulate((event.count for event in new), initial=int(value_of(connection, _COUNTER) or 0))]
    write_rows(
        connection,
        insert(connection, events),
        [
            {
                "number": number,
                "tenant": event.tenant,
                "type": event.type,
                "object_id": event.object_id,
                "at": event.at_ms,
                "webhook_id": event.webhook_id,
                "data": event.data,
            }
            for number, event in zip(numbers[1:], new, strict=True)
        ],
    )
    set_value(connection, _COUNTER, str(numbers[-1]))
