"""Reads of a tenant's events, by their numbers.

The event of a result is made from the result in its job's row, or in its batch's segments. A job may get another
result, as after a redrive. Events of another outcome are then left out, and events of the same outcome show the last
result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pydantic_core import from_json
from sqlalchemy import Connection, and_, func, or_, select

from gateway.store.tables import events, jobs
from gateway.view.offsets import being_rebuilt
from gateway.view.segments import find_answers
from schemas.codec import InvalidResult, read_result
from schemas.event import event_body, event_type, stored_event_body
from schemas.outcome import Outcome

LINES: Final = "lines"
"""The type of a row that stands for the events of several lines of a batch."""
FEW: Final = 10
"""The number of events that are in memory besides a page's, since an answer may have nearly a mebibyte."""
_FEW: Final = {"yield_per": FEW}
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


def events_after(
    connection: Connection, tenant: str, number: int, types: Sequence[str], limit: int, most_bytes: int
) -> EventPage:
    """Return at most `limit` events after this number, up to the one with which they have `most_bytes`.

    `types` are names, or prefixes with ALL_BELOW; without types, all events match.
    """
    if being_rebuilt(connection):
        return EventPage((), number)  # no events yet, because results are missing until the rebuild ends
    end = last_number(connection, tenant)
    conditions: list[Any] = [events.c.tenant == tenant, events.c.number > number, events.c.number <= end]
    if types:
        conditions.append(or_(*map(_is_of, types), *([events.c.type == LINES] if _of_lines(types) else [])))
    columns = (events.c.number, events.c.type, events.c.object_id, events.c.webhook_id, events.c.data, jobs.c.result)
    of_a_result = and_(events.c.data.is_(None), jobs.c.tenant == events.c.tenant, jobs.c.job_id == events.c.object_id)
    wanted = select(*columns).select_from(events.outerjoin(jobs, of_a_result)).where(*conditions)
    found: list[StoredEvent] = []
    size = 0
    with connection.execute(wanted.order_by(events.c.number).limit(limit), execution_options=_FEW) as rows:
        for looked_at, (at, event) in enumerate(_each(connection, tenant, rows, number, types), 1):
            if event is not None:
                found.append(event)
                size += len(event.data)
            if looked_at == limit or size >= most_bytes:
                return EventPage(found, at)
    return EventPage(found, max(end, number))


def _each(
    connection: Connection, tenant: str, rows: Iterable[Any], number: int, types: Sequence[str]
) -> Iterator[tuple[int, StoredEvent | None]]:
    """Yield the number of each event after `number`, with the event; None instead of one that is left out.

    The number of each row is yielded.
    """
    for row in rows:
        if row.type == LINES:
            seq, said = from_json(row.data)
            some = _lines(row.number, said, number, types)
            for begin in range(0, len(some), FEW):
                few = some[begin : begin + FEW]
                known = {event.number: event for event in _line_events(connection, tenant, row.object_id, few, seq)}
                yield from ((each.number, known.get(each.number)) for each in few)
            yield row.number, None
        else:
            data = _data(row, tenant)
            yield row.number, None if data is None else StoredEvent(row.number, row.type, data)


class _LineEvent(NamedTuple):
    number: int
    line: int
    type: str


def _of_lines(types: Sequence[str]) -> list[str]:
    """Return the types of events of results that a filter chooses."""
    kinds = map(event_type, Outcome)
    prefixes = tuple(name.removesuffix("*") for name in types if name.endswith(ALL_BELOW))
    return [kind for kind in kinds if not types or kind in types or kind.startswith(prefixes)]


def _lines(last: int, said: Sequence[tuple[int, Outcome]], number: int, types: Sequence[str]) -> list[_LineEvent]:
    """Return the events after `number` of the lines and outcomes in `said`; `last` is the number of the last one."""
    chosen = _of_lines(types)
    numbered = enumerate(said, last - len(said) + 1)
    some = (_LineEvent(at, line, f"inference.{outcome}") for at, (line, outcome) in numbered if at > number)
    return [each for each in some if each.type in chosen]


def _line_events(
    connection: Connection, tenant: str, batch_id: str, some: Sequence[_LineEvent], seq: int
) -> Iterator[StoredEvent]:
    answers = find_answers(connection, tenant, batch_id, {each.line for each in some}, seq)
    for each in some:
        answer = answers.get(each.line)
        if answer is not None and f"inference.{answer[0].status}" == each.type:
            data = event_body(answer[1], answer[0].webhook_id or f"msg_{batch_id}.{each.line}", tenant)
            yield StoredEvent(each.number, each.type, data)


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
