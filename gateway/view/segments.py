"""Answered lines of batches: the view writes one row of `batch_segments` for each page of results.

The same transaction counts the results. A segment has the results and the lines of the output file, one after the
other, and an index that places each of them.
Each answered line is current in exactly one segment of its batch. If an operator put a line back, its further result
replaces the earlier one: the entry in the earlier segment loses its status.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from pydantic_core import from_json, to_json
from sqlalchemy import ColumnElement, Connection, Row, func, select

from gateway.store.dialects import insert, write_rows
from gateway.store.states import COUNTING, FINALIZING, IN_PROGRESS
from gateway.store.tables import batch_segments, batches
from gateway.view.records import ResultRecord
from schemas.openai_answers import output_line
from schemas.outcome import Outcome
from schemas.result import Usage

SEGMENT_BYTES: Final = 1024 * 1024
"""A segment ends with the result that reaches this size, so that a reader holds little in memory."""
COUNTED: Final = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens")
"""The members of a result's usage whose sums a batch shows."""
_READ_TOGETHER: Final = {"yield_per": 20}
"""Options of queries for many indexes: PostgreSQL's driver would otherwise take all of them into memory at once."""

Batch = Row[Any]


class Entry(NamedTuple):
    """The place of one answered line in its segment, with the details by which lines are found."""

    line: int
    """The line's number in the batch's input, from 0."""
    at_ms: int
    """The time of the result's record, Unix milliseconds."""
    status: str | None
    """The outcome; None if a later segment has another result of the line."""
    custom_id: str | None
    model_id: str | None
    webhook_id: str | None
    metadata: dict[str, str]
    tokens: list[int] | None
    """The numbers of COUNTED; None for a result without usage."""
    result: tuple[int, int]
    """The first byte and the end of the result's record in `results`."""
    output: tuple[int, int]
    """The first byte and the end of the line in `output_lines`."""


def batches_of(connection: Connection, ids: Collection[str]) -> dict[tuple[str, str], Batch]:
    """Return the batches with these ids, by tenant and id."""
    if not ids:
        return {}
    found = connection.execute(select(batches).where(batches.c.id.in_(ids)))
    return {(row.tenant, row.id): row for row in found}


def write_segments(connection: Connection, batch: Batch, found: Sequence[ResultRecord]) -> list[ResultRecord]:
    """Write results of a batch's lines, and count them. Returns the results, which know if they are their line's first.

    The records have `line`.
    """
    answered = bytearray(-(-batch.total // 8))
    answered[: len(batch.answered or b"")] = batch.answered or b""
    stored = [each if _mark(answered, each.line) else each._replace(first=False) for each in found]
    if again := {each.line for each in stored if not each.first}:
        _replace(connection, batch.id, again)
    current = {each.line: each for each in found}.values()  # the last result of each line
    rows = [_segment(batch, seq, part) for seq, part in enumerate(_parts(current), batch.segments or 0)]
    write_rows(connection, insert(connection, batch_segments), rows)
    counted = [each.result.outcome for each in stored if each.first]
    completed = counted.count(Outcome.SUCCEEDED)
    values = {"answered": bytes(answered), "segments": rows[-1]["seq"] + 1}
    counts = batch.completed + completed, batch.failed + len(counted) - completed
    values |= _counts(batch, *counts, rows[-1]["last_at"]) if batch.status in COUNTING else {}
    connection.execute(batches.update().where(batches.c.id == batch.id).values(**values))
    return stored


def is_answered(batch: Batch, line: int) -> bool:
    """True if a line of the batch has had a result, which may be removed by now."""
    answered: bytes = batch.answered or b""
    return line >> 3 < len(answered) and answered[line >> 3] & 1 << (line & 7) != 0


def recount(connection: Connection, *these: ColumnElement[bool]) -> None:
    """Count the results of running batches again, from their segments: of all, or of those with these conditions."""
    for batch in connection.execute(select(batches).where(batches.c.status.in_(COUNTING), *these)).all():
        found = Counter(entry.status == Outcome.SUCCEEDED for _, entry in current_entries(connection, batch.id))
        values = _counts(batch, found[True], found[False], batch.created_at)
        connection.execute(batches.update().where(batches.c.id == batch.id).values(**values))


def _counts(batch: Batch, completed: int, failed: int, at_ms: int) -> dict[str, Any]:
    """Return the counts of a batch, and the change that lets the clerk finalise it if all lines have results."""
    counts = {"completed": completed, "failed": failed}
    if batch.status != IN_PROGRESS or completed + failed < batch.total:
        return counts
    begun = max(at_ms, batch.in_progress_at or 0)  # workers' clocks differ from the gateway's
    return {**counts, "status": FINALIZING, "finalizing_at": begun, "claimed_until": 0}


def entries_of(line_index: bytes) -> list[Entry]:
    """Return the entries of a segment's index."""
    return [Entry(*each) for each in from_json(line_index)]


def current_entries(connection: Connection, batch_id: str) -> Iterator[tuple[int, Entry]]:
    """Yield the segment and the entry of each answered line of a batch, in no order."""
    asked = select(batch_segments.c.seq, batch_segments.c.line_index).where(batch_segments.c.batch_id == batch_id)
    with connection.execute(asked, execution_options=_READ_TOGETHER) as found:
        for row in found:
            yield from ((row.seq, entry) for entry in entries_of(row.line_index) if entry.status is not None)


def outputs_of(connection: Connection, batch_id: str, seq: int) -> bytes | None:
    """Return the output lines of a segment; None if there is no such segment."""
    this = (batch_segments.c.batch_id == batch_id) & (batch_segments.c.seq == seq)
    found: bytes | None = connection.execute(select(batch_segments.c.output_lines).where(this)).scalar()
    return found


def find_answers(
    connection: Connection, tenant: str, batch_id: str, lines: Collection[int], near: int | None = None
) -> dict[int, tuple[Entry, bytes]]:
    """Return the entry and the result's record of each of these lines that is answered.

    `near` is the segment into which the lines were written. It is read first, because in a large batch many segments
    have lines below and above a given line.
    """
    if not lines:
        return {}
    columns = batch_segments.c
    these = (columns.tenant == tenant) & (columns.batch_id == batch_id)
    these &= (columns.first_line <= max(lines)) & (columns.last_line >= min(lines))
    if len(lines) == 1:  # the database looks faster than this process reads the indexes of a large batch
        these &= _holds(connection, b"[%d," % next(iter(lines)))
    found: dict[int, tuple[Entry, bytes]] = {}
    for some in (these,) if near is None else (these & (columns.seq == near), these & (columns.seq != near)):
        if len(found) == len(lines):
            break
        for seq, entries in entries_with(connection, some, lines):
            this = (columns.batch_id == batch_id) & (columns.seq == seq)
            results = connection.execute(select(columns.results).where(this)).scalar_one()
            found |= {each.line: (each, results[slice(*each.result)]) for each in entries}
    return found


def entries_with(
    connection: Connection, some: ColumnElement[bool], lines: Collection[int]
) -> Iterator[tuple[int, list[Entry]]]:
    """Yield the current entries of these lines, by the numbers of those segments among `some` that have any."""
    asked = select(batch_segments.c.seq, batch_segments.c.line_index).where(some)
    with connection.execute(asked, execution_options=_READ_TOGETHER) as found:
        for row in found:
            entries = [each for each in entries_of(row.line_index) if each.line in lines and each.status is not None]
            if entries:
                yield row.seq, entries


def indexes(
    connection: Connection, tenant: str, conditions: Sequence[ColumnElement[bool]], *, ascending: bool
) -> Iterator[Any]:
    """Yield the indexes of a tenant's segments, by the time of their first results, or of their last ones downwards."""
    columns = batch_segments.c
    order = (
        (columns.first_at, columns.batch_id, columns.seq)
        if ascending
        else (columns.last_at.desc(), columns.batch_id, columns.seq)
    )
    asked = select(columns.batch_id, columns.seq, columns.first_at, columns.last_at, columns.line_index)
    asked = asked.where(columns.tenant == tenant, *conditions).order_by(*order)
    with connection.execute(asked, execution_options=_READ_TOGETHER) as found:
        yield from found


def having(connection: Connection, *texts: str) -> ColumnElement[bool]:
    """Return the condition that a segment's index has this text, or this key of a line's metadata with this value.

    Every segment with such a line fulfils the condition, and few others do. No line has a lone surrogate, which JSON
    cannot have.
    """
    return _holds(connection, b":".join(to_json(text.encode(errors="replace").decode()) for text in texts))


def _holds(connection: Connection, text: bytes) -> ColumnElement[bool]:
    """Return the condition that a segment's index has these bytes."""
    if connection.dialect.name == "postgresql":
        return func.pg_catalog.position(batch_segments.c.line_index, text) > 0  # `strpos` takes no bytes
    return func.instr(batch_segments.c.line_index, text) > 0


def outcomes_by_minute(connection: Connection, tenant: str, since_ms: int) -> Counter[tuple[int, str]]:
    """Return the numbers of results since a time, by the minute of their segment's last result and by outcome."""
    columns = batch_segments.c
    asked = select(columns.last_at, columns.outcomes).where(columns.tenant == tenant, columns.last_at >= since_ms)
    found: Counter[tuple[int, str]] = Counter()
    for row in connection.execute(asked):
        found.update({(row.last_at // 60_000, outcome): count for outcome, count in row.outcomes.items()})
    return found


def forget_since(connection: Connection, since_ms: int) -> None:
    """Remove the segments whose results are all of this time or later, so that they can be written again."""
    removed = batch_segments.c.first_at >= since_ms
    ids = connection.execute(select(batch_segments.c.batch_id).where(removed).distinct()).scalars().all()
    connection.execute(batch_segments.delete().where(removed))
    for batch_id in ids:
        total = select(batches.c.total).where(batches.c.id == batch_id)
        answered = bytearray(-(-connection.execute(total).scalar_one() // 8))
        for _, entry in current_entries(connection, batch_id):
            _mark(answered, entry.line)
        connection.execute(batches.update().where(batches.c.id == batch_id).values(answered=bytes(answered)))


def _mark(answered: bytearray, line: int) -> bool:
    """Mark a line as answered; True if it was not marked yet."""
    was, bit = answered[line >> 3], 1 << (line & 7)
    answered[line >> 3] = was | bit
    return not was & bit


def _parts(lines: Iterable[ResultRecord]) -> Iterator[list[ResultRecord]]:
    """Yield the lines in parts of about SEGMENT_BYTES."""
    part: list[ResultRecord] = []
    size = 0
    for each in lines:
        part.append(each)
        size += len(each.value)
        if size >= SEGMENT_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _segment(batch: Batch, seq: int, lines: Sequence[ResultRecord]) -> dict[str, Any]:
    """Return the row of a segment."""
    entries: list[Entry] = []
    results, outputs = bytearray(), bytearray()
    for record in lines:
        result = record.result
        starts = len(results), len(outputs)
        results += record.value
        outputs += to_json(output_line(result, batch.endpoint))
        outputs += b"\n"
        entry = Entry(
            record.line,
            record.at_ms,
            str(result.outcome),
            result.custom_id,
            result.model_id,
            record.webhook_id,
            result.metadata,
            _tokens(result.usage),
            (starts[0], len(results)),
            (starts[1], len(outputs)),
        )
        entries.append(entry)
    times = [each.at_ms for each in entries]
    numbers = [each.line for each in entries]
    return {
        "batch_id": batch.id,
        "seq": seq,
        "tenant": batch.tenant,
        "first_line": min(numbers),
        "last_line": max(numbers),
        "first_at": min(times),
        "last_at": max(times),
        "outcomes": dict(Counter(str(each.status) for each in entries)),
        "line_index": to_json(entries),
        "results": bytes(results),
        "output_lines": bytes(outputs),
    }


def _tokens(usage: Usage | None) -> list[int] | None:
    return None if usage is None else [getattr(usage, name) or 0 for name in COUNTED]


def _replace(connection: Connection, batch_id: str, lines: Collection[int]) -> None:
    """Take the status of these lines' entries away, because a new segment has their results."""
    columns = batch_segments.c
    these = (columns.first_line <= max(lines)) & (columns.last_line >= min(lines))
    asked = select(columns.seq, columns.line_index).where(columns.batch_id == batch_id, these)
    for row in connection.execute(asked).all():
        entries = entries_of(row.line_index)
        kept = [each._replace(status=None) if each.line in lines else each for each in entries]
        if kept != entries:
            this = (columns.batch_id == batch_id) & (columns.seq == row.seq)
            connection.execute(batch_segments.update().where(this).values(line_index=to_json(kept)))
