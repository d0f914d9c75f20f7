"""The clerk, a side task of the process: checks new batches, writes files of answered batches, and sweeps files.

The store shows the work that is left, so after a kill the next process goes on. A process claims a batch for a few
seconds, and renews the claim while it works. A claim only avoids double work. Without claims, two processes would still
do no harm, because every step is compare-and-set.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress

from sqlalchemy import ColumnElement, Connection, and_, or_, select

from gateway.accept.outbox import put_record
from gateway.access.allowed import OF_A_LINE, check_job
from gateway.access.quotas import QuotaExceeded, Work, has_quota, reserve, tokens_of
from gateway.access.tenant_settings import TenantSettings
from gateway.batches import orders
from gateway.batches.checking import Checked, LineError, check_file
from gateway.batches.files import Shelf
from gateway.batches.finalising import finalise
from gateway.batches.orders import BatchRow, OnEnded
from gateway.batches.ranges import LineRange, write_range
from gateway.batches.uploads import sweep
from gateway.blobs.base import BlobError, BlobMissing
from gateway.dependency import Dependency
from gateway.errors import ApiError
from gateway.store.states import CANCELLING, ENDED, FAILED, FINALIZING, IN_PROGRESS, VALIDATING
from gateway.store.store import StoreAway
from gateway.store.tables import batches
from schemas import topics as names
from schemas.codec import write_job
from schemas.job import Job
from schemas.topics import Topics
from telemetry.logs import get_logger
from workers.system.side_task import SideTask

POLL_SECONDS = 0.5
SWEEP_SECONDS = 60.0
CLAIM_MS = 5000
RENEW_SECONDS = 1.5
AT_ONCE = 3
"""The number of batches that one process works on at once, so that a large batch does not delay small ones."""
LATE_MS = 30_000
"""A batch waits this many milliseconds after its deadline for results that workers are still writing."""
RETRY_SECONDS = 2.0

SettingsOf = Callable[[str], TenantSettings]
"""Returns a tenant's settings. Runs in a thread. Raises StoreAway."""

log = get_logger()


class Stopping(Exception):  # noqa: N818 - it names what happened
    """The process is ending; the next process does the work."""


class Clerk(SideTask):
    """Looks for work every POLL_SECONDS, and at once after `wake`."""

    def __init__(
        self,
        shelf: Shelf,
        topics: Topics,
        settings_of: SettingsOf,
        on_ended: OnEnded,
    ) -> None:
        self._shelf = shelf
        self._topics = topics
        self._settings_of = settings_of
        self._on_ended = on_ended
        self._working: dict[str, asyncio.Task[None]] = {}
        self._stopping = threading.Event()
        self._woken = asyncio.Event()
        self._away = ""
        self._sweep_at = 0.0
        self._threads = Dependency("batches", AT_ONCE + 1, 0)
        """Runs the steps of batches, and the sweep."""

    def reasons(self) -> list[str]:
        """Return the reason why no batch goes on, if the store does not answer."""
        return [self._away] if self._away else []

    def wake(self) -> None:
        """Look for work at once. Call this on the event loop after a change of a batch."""
        self._woken.set()

    async def ended(self) -> None:
        """Work until cancelled, then wait for the threads, which stop at their next page of lines."""
        try:
            while True:
                await self._look()
                await self._rest()
        finally:
            self._stopping.set()
            if self._working:
                await asyncio.wait(list(self._working.values()))
            self._threads.close()

    async def _look(self) -> None:
        try:
            found = await self._shelf.store.read(self._due)
        except StoreAway as away:
            self._away = str(away)
            return
        self._away = ""
        for row in found:
            if row.id not in self._working and len(self._working) < AT_ONCE:
                self._begin(row.id, self._work(row.id))
        if self._shelf.clock.monotonic() >= self._sweep_at and "" not in self._working:
            self._sweep_at = self._shelf.clock.monotonic() + SWEEP_SECONDS
            self._begin("", self._sweep())

    def _due(self, connection: Connection) -> Sequence[BatchRow]:
        """Return batches that need a step, and that no process has claimed.

        A running batch needs a step when it is late. A cancelled one waits `cancel_seconds` for further results.
        """
        now_ms = self._shelf.now_ms()
        answered = batches.c.completed + batches.c.failed >= batches.c.total
        given_up = batches.c.cancelling_at <= now_ms - int(1000 * self._shelf.settings.cancel_seconds)
        waiting = or_(
            batches.c.status.in_((VALIDATING, FINALIZING)),
            and_(batches.c.status == IN_PROGRESS, batches.c.expires_at < now_ms - LATE_MS),
            and_(batches.c.status == CANCELLING, or_(answered, given_up)),
        )
        statement = select(batches).where(_is_free(now_ms), waiting).order_by(batches.c.id).limit(100)
        return connection.execute(statement).all()

    def _begin(self, name: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name=f"batches-{name or 'sweep'}")
        self._working[name] = task
        task.add_done_callback(lambda _: self._finished(name))

    def _finished(self, name: str) -> None:
        del self._working[name]
        self._woken.set()

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._woken.wait()
        except TimeoutError:
            return
        self._woken.clear()

    async def _work(self, batch_id: str) -> None:
        """Claim one batch and do its next step. Errors are logged, and the step is tried again."""
        try:
            row = await self._shelf.store.write(lambda connection: self._claim(connection, batch_id))
            if row is not None:
                await self._claimed(row)
        except (BlobError, StoreAway, ApiError) as error:
            self._failed(batch_id, str(error))
            await asyncio.sleep(RETRY_SECONDS)
        except Exception as error:
            self._failed(batch_id, f"an unexpected {type(error).__qualname__}", defect=True)
            await asyncio.sleep(RETRY_SECONDS)

    async def _claimed(self, row: BatchRow) -> None:
        """Do the next step of a claimed batch. If the process stops, the claim is released."""
        renewing = asyncio.create_task(self._renew(row), name=f"claim-{row.id}")
        try:
            await self._threads.run_anyway(self._next_step, row)
        except Stopping:
            await self._hold(row, 0)
        finally:
            renewing.cancel()

    def _claim(self, connection: Connection, batch_id: str) -> BatchRow | None:
        """Claim a batch for this process. Returns None if another process has claimed it, or it has ended."""
        now_ms, this = self._shelf.now_ms(), batches.c.id == batch_id
        claimed = batches.update().where(this, _is_free(now_ms)).values(claimed_until=now_ms + CLAIM_MS)
        if connection.execute(claimed).rowcount == 0:
            return None
        return connection.execute(select(batches).where(this)).one()

    async def _hold(self, row: BatchRow, until_ms: int) -> None:
        """Keep the claim until a time, if the batch still has the status that `row` has; 0 releases the claim."""
        this = batches.c.id == row.id, batches.c.status == row.status
        kept = batches.update().where(*this).values(claimed_until=until_ms)
        await self._shelf.store.write(lambda connection: connection.execute(kept).rowcount)

    async def _renew(self, row: BatchRow) -> None:
        """Keep the claim until cancelled.

        While the store is away, the claim may expire, and another process may do the same work.
        """
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            with suppress(StoreAway):
                await self._hold(row, self._shelf.now_ms() + CLAIM_MS)

    def _failed(self, batch_id: str, reason: str, *, defect: bool = False) -> None:
        log.error(
            "A batch could not be checked or finalised; trying again.",
            action="batch-step-failed",
            batch_id=batch_id,
            reason=reason,
            exc_info=defect,
        )

    async def _sweep(self) -> None:
        try:
            await self._threads.run_anyway(sweep, self._shelf)
        except StoreAway as away:
            self._away = str(away)

    def _next_step(self, row: BatchRow) -> None:
        """Do a batch's next step. Blocks. Raises BlobError, StoreAway, ApiError and Stopping."""
        if row.status == VALIDATING:
            self._check(row)
            return
        if row.status == IN_PROGRESS:  # its completion window is over
            late = {"finalizing_at": self._shelf.now_ms()}
            self._shelf.store.write_now(lambda to: orders.step(to, row.id, IN_PROGRESS, FINALIZING, **late))
            return
        finalise(self._shelf, row, self._on_ended, self._stop_asked)
        log.info("A batch's files are written, if it has all results.", action="batch-ended", batch_id=row.id)

    def _check(self, row: BatchRow) -> None:
        pieces = self._until_stopped(self._shelf.blobs.read(row.input_file_id))
        allowance = _LineAllowance(self._settings_of(row.tenant))
        try:
            skips = (row.metadata or {}).get(orders.SKIP_INVALID) == "true"
            checked = check_file(pieces, row.endpoint, allowance, expires_ms=row.expires_at, skips=skips)
        except BlobMissing:
            message = "The input file's content is missing in the storage of files; upload it again."
            checked = Checked(errors=[LineError("input_file_missing", message, param="input_file_id")])
        if checked.errors:
            self._refuse(row, *checked.errors)
            return
        try:
            begun = self._shelf.store.write_now(lambda connection: self._begun(connection, row, checked, allowance))
        except QuotaExceeded as exceeded:
            self._refuse(row, LineError("quota_exceeded", str(exceeded)))
            return
        if begun:
            log.info(
                "Every line of the batch is a valid job; expanding the batch.", action="batch-begun", batch_id=row.id
            )

    def _begun(self, connection: Connection, row: BatchRow, checked: Checked, allowance: _LineAllowance) -> bool:
        """Put the batch to work, within its tenant's quota: write a record for each range.

        Returns False if the batch was cancelled. Raises QuotaExceeded.
        """
        said = {"total": checked.total, "in_progress_at": self._shelf.now_ms()}
        if not orders.step(connection, row.id, VALIDATING, IN_PROGRESS, **said):
            return False
        headers = [(names.TENANT, row.tenant.encode()), (names.DEADLINE, str(row.expires_at).encode())]
        if row.traceparent is not None:
            headers.append((names.TRACEPARENT, row.traceparent.encode()))
        ids = {"tenant": row.tenant, "batch_id": row.id, "file_id": row.input_file_id}
        for each in checked.ranges:
            record = LineRange(**ids, **each.model_dump())
            put_record(connection, self._topics.batch_requests, record.key, write_range(record), headers)
        allowance.reserve(connection, row.tenant, row.id, checked.total)
        return True

    def _refuse(self, row: BatchRow, *errors: LineError) -> None:
        """End a batch whose file has lines that are no jobs, unless it was cancelled meanwhile."""
        log.info(
            "A batch has unusable lines, or exceeds its tenant's quota; ending it as failed.",
            action="batch-refused",
            batch_id=row.id,
        )
        said = {"errors": [error.json for error in errors], "failed_at": self._shelf.now_ms()}
        self._shelf.store.write_now(lambda connection: orders.end(connection, row, FAILED, self._on_ended, **said))

    def _until_stopped(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._stop_asked()
            yield piece

    def _stop_asked(self) -> None:
        if self._stopping.is_set():
            raise Stopping


def _is_free(now_ms: int) -> ColumnElement[bool]:
    """Return the condition for batches that have not ended, and that no process has claimed."""
    return and_(batches.c.claimed_until <= now_ms, batches.c.status.not_in(ENDED))


class _LineAllowance:
    """A tenant's rules for the lines of one batch: its allow-lists, and the tokens that its quota counts.

    Checks each line of a batch once, and adds up the tokens of all lines. Implements `checking.CheckJob`.
    """

    def __init__(self, settings: TenantSettings) -> None:
        self._settings = settings
        self._tokens = 0

    def __call__(self, job: Job) -> str | None:
        """Return the reason why the tenant may not run the job, as a sentence; None if the tenant may."""
        if has_quota(self._settings):
            self._tokens += tokens_of(len(write_job(job)), job.max_tokens)
        problems = check_job(self._settings, job, OF_A_LINE)
        return "; ".join(map(str, problems)) + "." if problems else None

    def reserve(self, connection: Connection, tenant: str, batch_id: str, lines: int) -> None:
        """Reserve the batch's lines, if the tenant has a quota, and note the reservation in the batch's row.

        Raises QuotaExceeded.
        """
        if not has_quota(self._settings):
            return
        reserve(connection, tenant, self._settings, Work(lines, self._tokens))
        kept = batches.update().where(batches.c.tenant == tenant, batches.c.id == batch_id)
        connection.execute(kept.values(reserved_lines=lines, reserved_tokens=self._tokens))
