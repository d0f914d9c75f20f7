"""The receipt of a submission states each line's job, and whether Kafka has the job.

The format is JSON Lines, with one line for each job. The receipt is written before the first job is sent, and again
after Kafka has answered. So jobs keep their ids if the submission is run again after a crash. If an acknowledgement was
lost, the next run looks the job up before it sends the job again, so that the job is answered once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from producers.client import SubmitError
from producers.connection import needed
from producers.identity import new_job_id
from producers.jsonl import JobFile
from producers.reader import SKEW_MS
from producers.scan import Scanner
from schemas.bounded import WireModel
from schemas.codec import write_job
from schemas.job import CustomId, Identifier, Job, Tenant
from schemas.settings import KafkaSettings
from telemetry.atomic_file import replacing
from telemetry.clock import Clock

_DIGEST_BYTES = 8
_IDENTIFIER: TypeAdapter[str] = TypeAdapter(Identifier)


class ReceiptRefused(Exception):  # noqa: N818 - named after the refusal
    """The file is no receipt, belongs to another submission, or is in use. The error does not show a line's content."""


class ReceiptEntry(WireModel):
    """One line of a receipt."""

    line: int
    """The job's line in the file of jobs, from 1."""
    custom_id: CustomId | None = None
    job_id: Identifier
    tenant: Tenant
    accepted: bool | None = None
    """True if Kafka has the job; None if that is unknown, for example after a lost acknowledgement."""
    reason: str | None = None
    """The reason why Kafka did not acknowledge the job."""
    url: str | None = None
    """The `url` of a line of an OpenAI Batch, such as `/v1/chat/completions`."""
    digest: str
    """Hash of the submitted job, to detect that the file has changed."""
    at: int
    """Time at which the line was first written, Unix milliseconds."""

    def written(self) -> str:
        """Return the line for the file. An unknown acceptance is written as null; other absent fields are left out."""
        silent = {name for name in ("custom_id", "reason", "url") if getattr(self, name) is None}
        return f"{self.model_dump_json(exclude=silent)}\n"

    def answered(self, error: SubmitError | None) -> ReceiptEntry:
        """Return the entry with the outcome of sending its job."""
        if error is None:
            return self.model_copy(update={"accepted": True, "reason": None})
        return self.model_copy(update={"accepted": None if error.perhaps else False, "reason": error.reason})


@dataclass(slots=True)
class Receipt:
    """The entries of one submission with their jobs, in the order of the file."""

    entries: list[ReceiptEntry]
    jobs: list[Job]
    doubtful: list[int] = field(default_factory=list)
    """Indices of jobs for which an earlier run got no definite answer."""

    @property
    def left(self) -> list[int]:
        """Indices of jobs that are not known to be in Kafka."""
        return [index for index, entry in enumerate(self.entries) if not entry.accepted]

    @property
    def since_ms(self) -> int | None:
        """Earliest `at` of the accepted jobs, Unix milliseconds; None if no job is accepted."""
        return min((entry.at for entry in self.entries if entry.accepted), default=None)

    def answer(self, index: int, error: SubmitError | None) -> None:
        """Record the outcome of sending one of the jobs."""
        self.entries[index] = self.entries[index].answered(error)


@dataclass(frozen=True, slots=True)
class NamedJobs:
    """The jobs that are named by a receipt or by a list of plain ids."""

    entries: dict[str, ReceiptEntry | None]
    """Maps each job's id to the receipt's entry, or to None if the id came without a receipt."""
    tenant: str | None
    """The tenant of the jobs, if a receipt names it."""
    refused: int
    """Number of the receipt's jobs that Kafka did not accept; `entries` leaves them out."""

    @property
    def since_ms(self) -> int | None:
        """A time before which none of the jobs can have a result, Unix milliseconds; None if unknown."""
        known = [entry.at for entry in self.entries.values() if entry is not None]
        return min(known) - SKEW_MS if known and len(known) == len(self.entries) else None


def read_ids(lines: Iterable[bytes]) -> NamedJobs:
    """Read the jobs that a file names: each line is a receipt's line or a job's id. Raises ReceiptRefused."""
    entries: dict[str, ReceiptEntry | None] = {}
    for number, line in enumerate(lines, start=1):
        content = line.strip()
        try:
            if content.startswith(b"{"):
                entry = ReceiptEntry.model_validate_json(content)
                entries[entry.job_id] = entry
            elif content:
                entries.setdefault(_IDENTIFIER.validate_json(to_json(content)), None)
        except (ValueError, ValidationError):
            raise ReceiptRefused(f"line {number} is neither a job's id nor a receipt's line") from None
    tenants = {entry.tenant for entry in entries.values() if entry is not None}
    if len(tenants) > 1:
        raise ReceiptRefused("it names jobs of several tenants; make one file for each tenant")
    accepted = {job_id: entry for job_id, entry in entries.items() if entry is None or entry.accepted is not False}
    return NamedJobs(accepted, next(iter(tenants), None), len(entries) - len(accepted))


def receipt_of(read: JobFile, tenant: str, clock: Clock, kept: Iterable[ReceiptEntry] = ()) -> Receipt:
    """Give each job of a file an id and a receipt entry; a line that already has an entry in `kept` gets that entry.

    Raises ReceiptRefused if `kept` belongs to another file or tenant.
    """
    at = round(clock.time() * 1000)
    earlier = {entry.line: entry for entry in kept}
    receipt = Receipt([], [])
    for job, line, url in zip(read.jobs, read.lines, read.urls, strict=True):
        digest = hashlib.blake2b(write_job(job), digest_size=_DIGEST_BYTES).hexdigest()
        entry = earlier.pop(line, None)
        if entry is not None and (entry.digest, entry.tenant) != (digest, tenant):
            raise ReceiptRefused(f"line {line} is another job, or another tenant's, than the receipt says: {_OTHER}")
        if entry is not None and entry.accepted is None:
            receipt.doubtful.append(len(receipt.entries))
        if entry is None:
            named = job.job_id or new_job_id(clock)
            entry = ReceiptEntry(
                line=line, custom_id=job.custom_id, job_id=named, tenant=tenant, url=url, digest=digest, at=at
            )
        receipt.entries.append(entry)
        receipt.jobs.append(job if job.job_id else job.model_copy(update={"job_id": entry.job_id}))
    if earlier:
        raise ReceiptRefused(f"the receipt has a line {min(earlier)}, which holds no job: {_OTHER}")
    return receipt


_OTHER = "give this submission a receipt of its own"


def look_up(settings: KafkaSettings, receipt: Receipt) -> int:
    """Look up jobs of unknown acceptance in the fleet's lanes, mark those found as accepted, and return their number.

    Lanes keep jobs for a week. Raises ProducerError.
    """
    doubtful = {receipt.entries[index].job_id: index for index in receipt.doubtful}
    if not doubtful:
        return 0
    since_ms = min(receipt.entries[index].at for index in receipt.doubtful)
    found = set()
    with needed("that is to be read to find out which jobs of an earlier run arrived"), Scanner(settings) as scanner:
        for lane in settings.topics.requests_of(None):
            for record in scanner.read(scanner.ranges(lane, since_ms)):
                index = doubtful.get((record.key or b"").decode("utf-8", "replace"))
                if index is not None and record.tenant == receipt.entries[index].tenant:
                    found.add(index)
    for index in found:
        receipt.answer(index, None)
    return len(found)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Lock a receipt against other runs for the duration of a `with` block.

    The block must contain all reading and writing of the receipt. Otherwise two runs at once would send jobs twice, and
    only one run's receipt would remain. A separate lock file is used, because writing replaces the receipt. A killed
    run releases its lock. Raises OSError, and ReceiptRefused if another run has the lock.
    """
    place = path.resolve()
    if place.exists() and not place.is_file():
        raise ReceiptRefused("is no file that could be replaced")
    beside = place.with_name(f".{place.name}.lock")
    descriptor = _locked(beside)
    try:
        yield
    finally:
        # The file is removed before the lock is released, so that a run that has opened the file sees that it is gone.
        beside.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(beside: Path) -> int:
    while True:
        descriptor = os.open(beside, os.O_RDONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(descriptor, beside):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise ReceiptRefused("another run uses this receipt") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_still(descriptor: int, path: Path) -> bool:
    """True if the path still leads to the open file; False if a run has removed the file since it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def read_receipt(path: Path) -> list[ReceiptEntry]:
    """Return the entries of an earlier run; an empty result if there is no file. Raises ReceiptRefused and OSError."""
    if not path.exists():
        return []
    entries = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                entries.append(ReceiptEntry.model_validate_json(line))
            except ValidationError:
                raise ReceiptRefused(f"line {number} is no line of a receipt: {_OTHER}") from None
    return entries


def write_receipt(path: Path, entries: Sequence[ReceiptEntry]) -> None:
    """Write the receipt completely or not at all. Raises OSError."""
    with replacing(path) as out:
        out.writelines(entry.written().encode() for entry in entries)
