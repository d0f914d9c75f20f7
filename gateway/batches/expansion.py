"""The expansion's handler: a record of `batch_requests` becomes the jobs of its lines.

The stage makes sure that this happens exactly once.

Each record ends in one of these ways:

    batch in progress          its jobs, each line as it stands, in the bulk lane if the batch is large;
                               a `rejected` result for each line that the batch skips
    batch being cancelled      a `cancelled` result for each line; none runs
    batch ended                no output: the batch's files have all lines already
    batch or content missing   `failed` results for the lines, and the record as a dead letter
    unreadable record          the record as a dead letter; its batch ends by its deadline

Each job goes to a partition of its tenant's shard. While the store, the storage of files or Kafka is away, the record
waits.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from pydantic_core import from_json
from sqlalchemy import Connection, select

from gateway.batches.files import Shelf
from gateway.batches.orders import BatchRow
from gateway.batches.ranges import InvalidRange, LineRange, job_id, lines_of, read_range
from gateway.blobs.base import BlobMissing, BlobsAway
from gateway.store.states import CANCELLING, FINALIZING, IN_PROGRESS
from gateway.store.store import StoreAway
from gateway.store.tables import batches
from producers.sharding import Partitioner
from schemas import topics as names
from schemas.codec import address_in, write_result
from schemas.outcome import Outcome
from schemas.result import Result, ResultError
from schemas.topics import Topics
from schemas.trust import TrustSecrets, tenant_headers
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.inference.job_identity import identity_headers
from workers.stage.dead_letters import dead_letter
from workers.stage.record import Failure, Header, Output, Record
from workers.system.errors import ProcessError

BULK_LINES: Final = 1000
"""A batch with more lines than this goes to the bulk lane, where it does not delay single jobs."""
UNUSABLE: Final = "unusable_batch_range"
MISSING: Final = "input_file_missing"
RUNNING: Final = (IN_PROGRESS, FINALIZING)
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 10.0
_TTL = b'"ttl_seconds"'

T = TypeVar("T")
log = get_logger()


class Unusable(Exception):  # noqa: N818 - it names what is wrong
    """The range cannot be expanded. The text says why."""


class ExpansionHandler:
    """Turns ranges of batches into jobs, on the event loop; threads read files and rows."""

    def __init__(
        self,
        topics: Topics,
        shelf: Shelf,
        partitions: Callable[[str], Awaitable[int]],
        clock: Clock,
        metrics: Metrics,
        secrets: TrustSecrets | None = None,
    ) -> None:
        """`partitions` returns a topic's number of partitions, or raises ProcessError. `secrets` sign jobs' tenants."""
        self._topics = topics
        self._partitions = partitions
        self._partitioner = Partitioner()
        self._shelf = shelf
        self._clock = clock
        self._outcomes = metrics.jobs.begin()
        self._dead_letters = metrics.dead_letters
        self._dead_letters.begin()
        self._secrets = secrets

    async def handle(self, record: Record) -> Sequence[Output]:
        """Return the jobs of a range, or the output of another ending that the module's docstring lists."""
        try:
            wanted = read_range(record.value)
        except InvalidRange as error:
            return [self._letter(record, str(error), 1)]
        try:
            batch = await self._patiently(lambda: self._shelf.store.read(lambda connection: _batch(connection, wanted)))
            if batch.status in RUNNING:
                lines = await self._patiently(lambda: self._shelf.ranges.run_anyway(self._read, wanted))
                topic = self._topics.requests(bulk=batch.total > BULK_LINES)
                partitions = await self._patiently(lambda: self._partitions(topic))
                return self._jobs(batch, wanted, lines, topic, partitions)
            if batch.status == CANCELLING:
                return self._cancelled(batch, wanted, await self._shelf.ranges.run_anyway(self._read_if_there, wanted))
            return []
        except Unusable as unusable:
            why = ResultError(code=MISSING, message=str(unusable))
            return [*self._ended(wanted, Outcome.FAILED, why, {}), self._letter(record, str(unusable), 1)]

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        """Return the output for a record that cannot be handled: failed results for its lines, and its dead letter."""
        letter = self._letter(record, failure.message, failure.attempts)
        try:
            wanted = read_range(record.value)
        except InvalidRange:
            return [letter]
        error = ResultError(code=failure.code, message=failure.message)
        return [*self._ended(wanted, Outcome.FAILED, error, {}), letter]

    def _jobs(
        self, batch: BatchRow, wanted: LineRange, lines: dict[int, bytes], topic: str, partitions: int
    ) -> list[Output]:
        traced: list[Header] = [] if batch.traceparent is None else [(names.TRACEPARENT, batch.traceparent.encode())]
        common: list[Header] = [(names.DEADLINE, str(batch.expires_at).encode()), *traced]
        chosen = self._partitioner.partitions(topic, wanted.tenant, partitions, lines.values())
        made = self._skipped(wanted)
        for (number, content), partition in zip(lines.items(), chosen, strict=True):
            headers: list[Header] = [*tenant_headers(self._secrets, wanted.tenant, job_id(batch.id, number), content)]
            if _TTL in content:
                headers += [(names.DEADLINE, self._deadline(content, batch.expires_at)), *traced]
            else:
                headers += common
            made.append(Output(topic, content, None, headers, partition))
        return made

    def _skipped(self, wanted: LineRange) -> list[Output]:
        """Return a `rejected` result, without a callback, for each line that does not run."""
        made: list[Output] = []
        for each in wanted.skipped:
            one = wanted.model_copy(update={"first": each.line, "lines": 1})
            made += self._ended(one, Outcome.REJECTED, ResultError(code=each.code, message=each.message), {})
        return made

    def _deadline(self, content: bytes, expires_at: int) -> bytes:
        """Return the line's deadline in Unix milliseconds.

        It is the batch's expiry, or the time `ttl_seconds` from now, or from `not_before`, if the line has this member
        and that time is earlier.
        """
        body, now = from_json(content)["body"], self._clock.time()
        seconds, begins = body.get("ttl_seconds"), body.get("not_before")
        if not isinstance(seconds, int | float):
            return str(expires_at).encode()
        begins = max(now, begins) if isinstance(begins, int | float) else now
        return str(min(expires_at, int((begins + seconds) * 1000))).encode()

    def _cancelled(self, batch: BatchRow, wanted: LineRange, lines: dict[int, bytes]) -> list[Output]:
        error = ResultError(code=Outcome.CANCELLED.value, message="the batch was cancelled before the line began")
        return self._ended(wanted, Outcome.CANCELLED, error, lines, batch.traceparent)

    def _ended(
        self,
        wanted: LineRange,
        outcome: Outcome,
        error: ResultError,
        lines: dict[int, bytes],
        traceparent: str | None = None,
    ) -> list[Output]:
        """Return a result for each line of a range whose lines will not run.

        `lines` has the lines whose content could be read.
        """
        self._outcomes[outcome].inc(wanted.lines)
        made = []
        for number in range(wanted.first, wanted.first + wanted.lines):
            identifier = job_id(wanted.batch_id, number)
            custom_id, callback = _address(lines.get(number))
            created_at = int(self._clock.time())
            result = Result(job_id=identifier, custom_id=custom_id, outcome=outcome, error=error, created_at=created_at)
            webhook_id = f"msg_{hashlib.sha256(f'{wanted.tenant}/{identifier}'.encode()).hexdigest()[:32]}"
            headers = identity_headers(wanted.tenant, identifier, webhook_id, traceparent)
            if callback is not None:
                headers.append((names.CALLBACK_URL, callback.encode()))
            made.append(Output(self._topics.results, write_result(result), identifier.encode(), headers))
        return made

    def _letter(self, record: Record, detail: str, attempts: int) -> Output:
        log.error(
            "A part of a batch cannot be expanded; its lines fail, and the record is kept as a dead letter.",
            action="range-unusable",
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            reason=detail,
        )
        self._dead_letters.labels(UNUSABLE).inc()
        topic = self._topics.dead_letters
        return dead_letter(topic, record, UNUSABLE, detail, attempts, list(record.headers or ()))

    def _read(self, wanted: LineRange) -> dict[int, bytes]:
        """Return a mapping from numbers to the lines of a range that run. Raises Unusable and BlobsAway."""
        skipped = {each.line for each in wanted.skipped}
        if len(skipped) == wanted.lines:
            return {}
        try:
            pieces = self._shelf.blobs.read(wanted.file_id, wanted.start, wanted.length)
            lines = {wanted.first + line.number: line.content for line in lines_of(pieces)}
        except BlobMissing:
            raise Unusable("the batch's input file is missing in the storage of files") from None
        found = {number: content for number, content in lines.items() if content and number not in skipped}
        if len(found) + len(skipped) != wanted.lines or len(lines) != wanted.lines:
            raise Unusable("the batch's input file has other lines than it had when it was checked")
        return found

    def _read_if_there(self, wanted: LineRange) -> dict[int, bytes]:
        try:
            return self._read(wanted)
        except (Unusable, BlobsAway):
            return {}

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Return the answer of `ask`; call `ask` again while the store, the storage of files or Kafka is away."""
        wait = _FIRST_WAIT_SECONDS
        while True:
            try:
                return await ask()
            except (StoreAway, BlobsAway, ProcessError) as away:
                log.warning(
                    "A batch cannot be expanded now; waiting to try again.",
                    action="expansion-waiting",
                    seconds=wait,
                    reason=str(away),
                )
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)


def _batch(connection: Connection, wanted: LineRange) -> BatchRow:
    """Return the batch's row. Raises Unusable if there is none, or if the record disagrees with the row."""
    row = connection.execute(select(batches).where(batches.c.id == wanted.batch_id)).one_or_none()
    if row is None:
        raise Unusable("the store has no such batch; was it restored from an older backup?")
    if (row.tenant, row.input_file_id) != (wanted.tenant, wanted.file_id):
        raise Unusable("the record names another tenant or file than the batch's row")
    return row


def _address(content: bytes | None) -> tuple[str | None, str | None]:
    """Return the `custom_id` and the callback's URL of a line, as far as they are known and valid."""
    try:
        line = from_json(content or b"")
    except ValueError:
        return None, None
    return address_in(line) if isinstance(line, dict) else (None, None)
