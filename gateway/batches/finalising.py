"""Writes the output and the error file of a batch: every line of its input is in exactly one of the two.

Each attempt writes files of its own, and the last step is compare-and-set on the batch's status. So of two attempts
one wins, and the other removes its files. The counts of an ended batch are those of its files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final

from pydantic_core import from_json, to_json
from sqlalchemy import ColumnElement, Connection, String, and_, cast, func, literal, select

from gateway.batches import files, orders
from gateway.batches.checking import MOST_LINES
from gateway.batches.files import OUTPUT_PURPOSE, FileTerms
from gateway.batches.orders import ENDED_AT, BatchRow, OnEnded, step
from gateway.batches.ranges import Line, job_id, lines_of
from gateway.batches.shelf import Draft, Shelf
from gateway.batches.states import CANCELLED, CANCELLING, COMPLETED, EXPIRED, FINALIZING, IN_PROGRESS
from gateway.blobs.base import BlobMissing
from gateway.errors import ApiError
from gateway.store.store import Store
from gateway.store.tables import jobs
from schemas.codec import InvalidResult, read_result
from schemas.openai_answers import output_line
from schemas.outcome import Outcome
from schemas.result import Result
from telemetry.logs import get_logger

PAGE_LINES, PAGE_BYTES = 500, 1024 * 1024
"""The maximum number of results that are read at once."""
WRITE_BYTES = 256 * 1024

_COUNTED = {"prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens"}
_UNANSWERED: Final = {
    EXPIRED: {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    },
    CANCELLED: {"code": "batch_cancelled", "message": "This request was not executed before the batch was cancelled."},
    COMPLETED: {"code": "result_missing", "message": "This request's result is lost."},
}

StopAsked = Callable[[], None]
"""Raises an exception if the process is to end."""

log = get_logger()


class OutOfStep(Exception):  # noqa: N818 - it names what happened
    """Another process ended the batch first."""


def finalise(shelf: Shelf, row: BatchRow, on_ended: OnEnded, stop_asked: StopAsked) -> None:
    """Write a batch's files and end the batch. Blocks.

    Raises BlobsAway, StoreAway and ApiError, after which another attempt may follow.
    """
    now_ms = shelf.now_ms()
    writers: list[FileWriter] = []
    total = row.total if row.in_progress_at is not None else _lines_in(shelf, row)
    try:
        output, error = (_writer(shelf, row, kind, writers) for kind in ("output", "error"))
        tally, spent = Counter[str](), Spent()
        _write_lines(shelf, row, total, (output, error), tally, spent, stop_asked)
        ending = _known_ending(row, now_ms, tally)
        if ending is None:
            _recount(shelf, row, tally)
            return
        for writer in writers:
            writer.finish()
        # If the store's answer is lost from here on, the batch may have the files, so only the sweep may remove them.
        for writer in writers:
            writer.dropped = False
        _commit(
            shelf,
            lambda connection: _end(connection, shelf, row, ending, tally, spent, (output, error), on_ended),
            writers,
        )
    except OutOfStep:
        return
    finally:
        for writer in writers:
            writer.drop()


class Spent:
    """The model and the tokens of a batch's answers."""

    def __init__(self) -> None:
        self._models: set[str] = set()
        self._tokens: Counter[str] = Counter()

    def add(self, result: Result) -> None:
        """Count a result."""
        if result.model_id is not None:
            self._models.add(result.model_id)
        if result.usage is not None:
            self._tokens.update(result.usage.model_dump(include=_COUNTED, exclude_none=True))

    @property
    def model(self) -> str | None:
        """The model of all answers; None if there are several."""
        return next(iter(self._models)) if len(self._models) == 1 else None

    @property
    def usage(self) -> dict[str, Any]:
        """The sums in the form of OpenAI's `batch_usage`."""
        tokens = self._tokens
        return {
            "input_tokens": tokens["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": tokens["cached_tokens"]},
            "output_tokens": tokens["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": tokens["reasoning_tokens"]},
            "total_tokens": tokens["total_tokens"],
        }


class FileWriter:
    """Collects lines into a file. The file is made when its first line is added, so no empty file is left behind."""

    def __init__(self, shelf: Shelf, row: BatchRow, kind: str) -> None:
        self._shelf = shelf
        self._row = row
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self.filename = f"{row.id}_{kind}.jsonl"
        self.draft: Draft | None = None
        self.dropped = True
        """True as long as `drop` may remove the file; False as soon as the batch may have the file."""

    def write(self, line: dict[str, Any]) -> None:
        """Append a line. Raises BlobsAway and StoreAway."""
        content = to_json(line) + b"\n"
        self._waiting.append(content)
        self._waiting_bytes += len(content)
        if self._waiting_bytes >= WRITE_BYTES:
            self._flush()

    def finish(self) -> None:
        """Make the file's content durable."""
        if self._waiting:
            self._flush()
        if self.draft is not None:
            self.draft.writer.commit()

    def keep(self, connection: Connection, expires_seconds: int, now_ms: int) -> str | None:
        """Make the file visible in the change that ends the batch.

        Returns the file's id; None if there are no lines.
        """
        if self.draft is None:
            return None
        terms = FileTerms(OUTPUT_PURPOSE, self.filename, expires_seconds)
        files.store(connection, self.draft.id, terms, self.draft.size, self.draft.sha256, now_ms)
        return self.draft.id

    def drop(self) -> None:
        """Remove the file of an attempt that failed."""
        if self.draft is not None and self.dropped:
            self._shelf.drop(self.draft)

    def _flush(self) -> None:
        if self.draft is None:
            self.draft = self._shelf.begin(self._row.tenant, self._row.submitted_by, bounded=False)
        self.draft.write(b"".join(self._waiting))
        self._waiting, self._waiting_bytes = [], 0


def _commit(shelf: Shelf, change: Callable[[Connection], None], writers: list[FileWriter]) -> None:
    """Run the change that ends the batch. A refused change has certainly not happened, so its files are dropped."""
    try:
        shelf.store.write_now(change)
    except (OutOfStep, ApiError):
        for writer in writers:
            writer.dropped = True
        raise


def _writer(shelf: Shelf, row: BatchRow, kind: str, writers: list[FileWriter]) -> FileWriter:
    writers.append(FileWriter(shelf, row, kind))
    return writers[-1]


def _ending(row: BatchRow, now_ms: int) -> str:
    """Return the status for lines without a result."""
    if row.status == CANCELLING:
        return CANCELLED
    return EXPIRED if (row.finalizing_at or now_ms) >= row.expires_at else COMPLETED


def _known_ending(row: BatchRow, now_ms: int, tally: Counter[str]) -> str | None:
    """Return the status with which the batch ends; None if the batch has to wait for more results."""
    ending = _ending(row, now_ms)
    if ending == COMPLETED and tally["unanswered"]:
        return None
    if ending == EXPIRED and not tally["unanswered"] and not tally[Outcome.EXPIRED]:
        return COMPLETED
    return ending


def _write_lines(
    shelf: Shelf,
    row: BatchRow,
    total: int,
    writers: tuple[FileWriter, FileWriter],
    tally: Counter[str],
    spent: Spent,
    stop_asked: StopAsked,
) -> None:
    """Write every line, in order. Count in `tally` how many lines have each outcome, and how many are `unanswered`."""
    (output, error), ending = writers, _ending(row, shelf.now_ms())
    inputs = InputLines(shelf, row.input_file_id)
    expected = 0
    for line, value in _results(shelf.store, row, stop_asked):
        for missing in range(expected, line):
            error.write(_unanswered(row, missing, inputs, ending))
        tally["unanswered"] += line - expected
        expected = line + 1
        outcome, written = _answered(row, line, value, inputs, spent)
        tally[outcome] += 1
        (output if outcome == Outcome.SUCCEEDED else error).write(written)
    for missing in range(expected, total):
        error.write(_unanswered(row, missing, inputs, ending))
    tally["unanswered"] += total - expected


def _results(store: Store, row: BatchRow, stop_asked: StopAsked) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the result of each line that has a result, in order.

    The store is read in pages of bounded bytes.
    """
    following = 0
    while True:
        stop_asked()
        sizes = store.read_now(partial(_sizes, row=row, following=following))
        if not sizes:
            return
        until, size = following, 0
        for line, length in sizes:
            if size and size + length > PAGE_BYTES:
                break
            until, size = line + 1, size + length
        yield from store.read_now(partial(_page, row=row, following=following, until=until))
        following = until


def _sizes(connection: Connection, row: BatchRow, following: int) -> list[tuple[int, int]]:
    statement = select(jobs.c.line, func.length(jobs.c.result)).where(_answered_lines(row, following, row.total))
    return [
        (line, length) for line, length in connection.execute(statement.order_by(jobs.c.line).limit(PAGE_LINES)).all()
    ]


def _page(connection: Connection, row: BatchRow, following: int, until: int) -> list[tuple[int, bytes]]:
    statement = select(jobs.c.line, jobs.c.result).where(_answered_lines(row, following, until))
    return [(line, value) for line, value in connection.execute(statement.order_by(jobs.c.line)).all()]


def _answered_lines(row: BatchRow, following: int, until: int) -> ColumnElement[bool]:
    theirs = and_(jobs.c.batch_id == row.id, jobs.c.tenant == row.tenant, jobs.c.result.is_not(None))
    own_id = jobs.c.job_id == literal(f"{row.id}.") + cast(jobs.c.line, String)
    return and_(theirs, jobs.c.line >= following, jobs.c.line < until, own_id)


def _answered(row: BatchRow, line: int, value: bytes, inputs: InputLines, spent: Spent) -> tuple[str, dict[str, Any]]:
    """Return the outcome and the output line of a result."""
    try:
        result = read_result(value)
    except InvalidResult:
        error = {
            "code": "result_unreadable",
            "message": "The result was written by another version, and is unreadable.",
        }
        return Outcome.FAILED, _failed(row, line, inputs.custom_id(line), error)
    spent.add(result)
    if result.custom_id is None:
        result = result.model_copy(update={"custom_id": inputs.custom_id(line)})
    return result.outcome, output_line(result, row.endpoint)


def _unanswered(row: BatchRow, line: int, inputs: InputLines, ending: str) -> dict[str, Any]:
    return _failed(row, line, inputs.custom_id(line), _UNANSWERED[ending])


def _failed(row: BatchRow, line: int, custom_id: str | None, error: dict[str, str]) -> dict[str, Any]:
    return {"id": f"batch_req_{job_id(row.id, line)}", "custom_id": custom_id, "response": None, "error": error}


class InputLines:
    """The `custom_id`s of the input, read on demand and in order, for lines whose results do not have them."""

    def __init__(self, shelf: Shelf, file_id: str) -> None:
        self._lines: Iterator[Line] = lines_of(_if_there(shelf.blobs.read(file_id)))
        self._last: Line | None = None

    def custom_id(self, number: int) -> str | None:
        """Return the line's `custom_id`; None if the file is missing. `number` must rise from call to call.

        Raises BlobsAway.
        """
        while self._last is None or self._last.number < number:
            self._last = next(self._lines, None)
            if self._last is None:
                return None
        if self._last.number != number:
            return None
        try:
            found = from_json(self._last.content or b"")["custom_id"]
        except (ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, str) else None


def _lines_in(shelf: Shelf, row: BatchRow) -> int:
    """Return the number of lines of a batch that was cancelled before they were counted, without blank ones at the end.

    Raises BlobsAway.
    """
    last = 0
    for line in lines_of(_if_there(shelf.blobs.read(row.input_file_id))):
        if line.content != b"":
            last = line.number + 1
        if last >= MOST_LINES:
            break
    return last


def _if_there(pieces: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from pieces
    except BlobMissing:
        return


def _recount(shelf: Shelf, row: BatchRow, tally: Counter[str]) -> None:
    """Let a batch wait for results that were counted but are not stored, as after `postback store rebuild`."""
    completed = tally[Outcome.SUCCEEDED]
    failed = sum(tally.values()) - tally["unanswered"] - completed
    log.warning(
        "Fewer results of a batch are stored than were counted; waiting for the others.",
        action="batch-recounted",
        batch_id=row.id,
        missing=tally["unanswered"],
    )
    shelf.store.write_now(
        lambda connection: step(connection, row.id, FINALIZING, IN_PROGRESS, completed=completed, failed=failed)
    )


def _end(
    connection: Connection,
    shelf: Shelf,
    row: BatchRow,
    ending: str,
    tally: Counter[str],
    spent: Spent,
    writers: tuple[FileWriter, FileWriter],
    on_ended: OnEnded,
) -> None:
    """End the batch with its files. Raises OutOfStep, and ApiError if a file took too long and was swept."""
    (output, error), now_ms = writers, shelf.now_ms()
    expires = row.output_expires_seconds or int(shelf.settings.result_days * 86_400)
    kept = {
        "output_file_id": output.keep(connection, expires, now_ms),
        "error_file_id": error.keep(connection, expires, now_ms),
        "total": tally.total(),
        "model": spent.model,
        "usage": spent.usage,
        "completed": tally[Outcome.SUCCEEDED],
        "failed": tally.total() - tally[Outcome.SUCCEEDED],
        "finalizing_at": row.finalizing_at or now_ms,
        ENDED_AT[ending]: now_ms,
    }
    if not step(connection, row.id, row.status, ending, **kept):
        raise OutOfStep
    on_ended(connection, orders.find(connection, row.tenant, row.id))
