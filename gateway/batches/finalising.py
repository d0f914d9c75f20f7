"""Writes the output and the error file of a batch: every line of its input is in exactly one of the two.

Each attempt writes files of its own, and the last step is compare-and-set on the batch's status. So of two attempts
one wins, and the other removes its files. The counts of an ended batch are those of its files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import add
from typing import Any, Final, NamedTuple

from pydantic_core import from_json, to_json
from sqlalchemy import Connection

from gateway.batches import files, orders
from gateway.batches.checking import MOST_LINES
from gateway.batches.files import OUTPUT_PURPOSE, Draft, FileTerms, Shelf
from gateway.batches.orders import ENDED_AT, BatchRow, OnEnded, step
from gateway.batches.ranges import Line, job_id, lines_of
from gateway.blobs.base import BlobMissing
from gateway.errors import ApiError
from gateway.store.states import CANCELLED, CANCELLING, COMPLETED, EXPIRED, FINALIZING, IN_PROGRESS
from gateway.store.store import Store
from gateway.store.tables import batches
from gateway.view.segments import COUNTED, current_entries, outputs_of, recount
from schemas.outcome import Outcome
from telemetry.logs import get_logger

RUN_BYTES = 4 * 1024 * 1024
"""The bytes of output that are put in order at once. Results come nearly in order, so few segments are read twice."""
WRITE_BYTES = 256 * 1024

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
    """Another process ended the batch first, or changed its segments."""


def finalise(shelf: Shelf, row: BatchRow, on_ended: OnEnded, stop_asked: StopAsked) -> None:
    """Write a batch's files and end the batch. Blocks.

    Raises BlobsAway, StoreAway and ApiError, after which another attempt may follow.
    """
    total = row.total if row.in_progress_at is not None else _lines_in(shelf, row)
    answered = shelf.store.read_now(lambda connection: Answered.of(connection, row.id))
    answered.tally["unanswered"] = total - len(answered.places)
    ending = _known_ending(row, shelf.now_ms(), answered.tally)
    if ending is None:
        _wait_on(shelf, row, answered.tally["unanswered"])
        return
    writers = FileWriter(shelf, row, "output"), FileWriter(shelf, row, "error")
    kept = False
    try:
        _write_lines(shelf, row, total, writers, answered, stop_asked)
        for writer in writers:
            writer.finish()
        # If the store's answer is lost from here on, the batch may have the files, so only the sweep may remove them.
        kept = True
        shelf.store.write_now(lambda connection: _end(connection, shelf, row, ending, answered, writers, on_ended))
    except OutOfStep:
        kept = False
    except ApiError:
        kept = False
        raise
    finally:
        for writer in writers if not kept else ():
            writer.drop()


class Place(NamedTuple):
    """The place of an answered line's output in the batch's segments."""

    line: int
    seq: int
    start: int
    end: int
    succeeded: bool
    named: bool
    """True if the output has the line's `custom_id`."""


@dataclass(slots=True)
class Answered:
    """The answered lines of a batch, with the sums over them."""

    places: list[Place] = field(default_factory=list)
    """The places, in the order of the lines."""
    tally: Counter[str] = field(default_factory=Counter)
    """The number of lines with each outcome, and of those that are `unanswered`."""
    models: set[str] = field(default_factory=set)
    tokens: list[int] = field(default_factory=lambda: [0] * len(COUNTED))
    """The sums of COUNTED."""

    @classmethod
    def of(cls, connection: Connection, batch_id: str) -> Answered:
        """Read the indexes of a batch's segments."""
        found = cls()
        for seq, entry in current_entries(connection, batch_id):
            succeeded, named = entry.status == Outcome.SUCCEEDED, entry.custom_id is not None
            found.places.append(Place(entry.line, seq, *entry.output, succeeded, named))
            found.tally[str(entry.status)] += 1
            if entry.model_id is not None:
                found.models.add(entry.model_id)
            if entry.tokens is not None:
                found.tokens = [*map(add, found.tokens, entry.tokens)]
        found.places.sort()
        return found

    @property
    def model(self) -> str | None:
        """The model of all answers; None if there are several."""
        return next(iter(self.models)) if len(self.models) == 1 else None

    @property
    def usage(self) -> dict[str, Any]:
        """The sums in the form of OpenAI's `batch_usage`."""
        prompt, completion, total, cached, reasoning = self.tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": total,
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

    def write(self, content: bytes) -> None:
        """Append a line with its line break. Raises BlobsAway and StoreAway."""
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
        files.store(connection, self.draft, terms, now_ms)
        return self.draft.id

    def drop(self) -> None:
        """Remove the file of an attempt that failed."""
        if self.draft is not None:
            self._shelf.drop(self.draft)

    def _flush(self) -> None:
        if self.draft is None:
            self.draft = self._shelf.begin(self._row.tenant, self._row.submitted_by, bounded=False)
        self.draft.write(b"".join(self._waiting))
        self._waiting, self._waiting_bytes = [], 0


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
    answered: Answered,
    stop_asked: StopAsked,
) -> None:
    """Write every line, in the input's order."""
    output, error = writers
    inputs, unanswered = InputLines(shelf, row.input_file_id), _UNANSWERED[_ending(row, shelf.now_ms())]

    def write_missing(first: int, until: int) -> None:
        for line in range(first, until):
            said = {"id": f"batch_req_{job_id(row.id, line)}", "custom_id": inputs.custom_id(line)}
            error.write(to_json({**said, "response": None, "error": unanswered}) + b"\n")

    expected = 0
    for place, content in _outputs(shelf.store, row, answered.places, stop_asked):
        write_missing(expected, place.line)
        expected = place.line + 1
        if not place.named:
            content = to_json({**from_json(content), "custom_id": inputs.custom_id(place.line)}) + b"\n"
        (output if place.succeeded else error).write(content)
    write_missing(expected, total)


def _outputs(
    store: Store, row: BatchRow, places: Sequence[Place], stop_asked: StopAsked
) -> Iterator[tuple[Place, bytes]]:
    """Yield the output of each place, in order. The outputs of RUN_BYTES and one segment are in memory at once.

    Raises OutOfStep if a segment was removed meanwhile, as by `postback store rebuild`.
    """
    for run in _runs(places):
        stop_asked()
        contents: dict[int, bytes] = {}
        by_seq = sorted(run, key=lambda place: place.seq)
        for seq, some in groupby(by_seq, key=lambda place: place.seq):
            outputs = store.read_now(partial(outputs_of, batch_id=row.id, seq=seq))
            if outputs is None:
                raise OutOfStep
            contents |= {place.line: outputs[place.start : place.end] for place in some}
        yield from ((place, contents[place.line]) for place in run)


def _runs(places: Sequence[Place]) -> Iterator[list[Place]]:
    """Yield the places in runs of about RUN_BYTES."""
    run: list[Place] = []
    size = 0
    for place in places:
        run.append(place)
        size += place.end - place.start
        if size >= RUN_BYTES:
            yield run
            run, size = [], 0
    yield run


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


def _wait_on(shelf: Shelf, row: BatchRow, missing: int) -> None:
    """Let a batch wait for results that were counted but are not stored, as after `postback store rebuild`.

    They are counted again in the same change: others may have come since they were read.
    """
    log.warning(
        "Fewer results of a batch are stored than were counted; waiting for the others.",
        action="batch-recounted",
        batch_id=row.id,
        missing=missing,
    )

    def change(connection: Connection) -> None:
        if step(connection, row.id, FINALIZING, IN_PROGRESS):
            recount(connection, batches.c.id == row.id)

    shelf.store.write_now(change)


def _end(
    connection: Connection,
    shelf: Shelf,
    row: BatchRow,
    ending: str,
    answered: Answered,
    writers: tuple[FileWriter, FileWriter],
    on_ended: OnEnded,
) -> None:
    """End the batch with its files. Raises OutOfStep, and ApiError if a file took too long and was swept."""
    (output, error), now_ms, tally = writers, shelf.now_ms(), answered.tally
    expires = row.output_expires_seconds or int(shelf.settings.result_days * 86_400)
    kept = {
        "output_file_id": output.keep(connection, expires, now_ms),
        "error_file_id": error.keep(connection, expires, now_ms),
        "total": tally.total(),
        "model": answered.model,
        "usage": answered.usage,
        "completed": tally[Outcome.SUCCEEDED],
        "failed": tally.total() - tally[Outcome.SUCCEEDED],
        "finalizing_at": row.finalizing_at or now_ms,
        ENDED_AT[ending]: now_ms,
    }
    if not orders.end(connection, row, ending, on_ended, **kept):
        raise OutOfStep
