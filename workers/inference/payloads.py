"""The payload of a job: its question, fetched from `payload_url` before the input filter sees the job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from schemas.codec import InvalidJob, ReceivedJob
from schemas.payload import UnusablePayload, with_payload
from schemas.unknown import joined
from workers.enrichment.evidence import Unreadable
from workers.enrichment.fetching.payloads import PayloadFetcher
from workers.enrichment.turns import Asker
from workers.inference.job_identity import invalid_job
from workers.inference.lifetime import JobIsOver, Lifetimes
from workers.inference.pace import EnginePace
from workers.inference.phases import Phases

_LATE: Final = "the job ended before its payload was fetched"


class NoPayload(Exception):  # noqa: N818 - named after the event, as NoImage is
    """A job's payload was not sent in time. The text names the field and the reason."""


@dataclass(frozen=True, slots=True)
class LoadedJob:
    """A job with the question of its payload."""

    received: ReceivedJob
    size: int
    """The payload's bytes."""
    fetch_ms: float
    """Milliseconds that the wait for a turn and the fetch took together."""


class Payloads:
    """Puts the question at `payload_url` into jobs."""

    def __init__(self, fetcher: PayloadFetcher, lifetimes: Lifetimes, pace: EnginePace, phases: Phases) -> None:
        self._fetcher = fetcher
        self._lifetimes = lifetimes
        self._pace = pace
        self._phases = phases

    @asynccontextmanager
    async def loaded(self, received: ReceivedJob) -> AsyncIterator[LoadedJob]:
        """Yield the job with its question. The payload's place in memory is freed when the block ends.

        Raises InvalidJob if the payload cannot be used and the job is at fault. Raises NoPayload if a server is at
        fault, or if the job is cancelled or expires meanwhile.
        """
        url = received.job.payload_url or ""
        async with AsyncExitStack() as stack:
            with self._pace.enriching(), self._phases.timed("enrich", received) as phase:
                payload = await self._fetched(received, url, stack)
                try:
                    # Use a thread, because hashing 8 MiB takes 20 ms, and does not need Python's lock.
                    job, unknown = await asyncio.to_thread(with_payload, received.job, payload)
                except UnusablePayload as unusable:
                    raise _refused(received, str(unusable)) from None
            size = len(payload)
            del payload
            yield LoadedJob(replace(received, job=job, unknown=joined(received.unknown, unknown)), size, phase.ms)

    async def _fetched(self, received: ReceivedJob, url: str, stack: AsyncExitStack) -> bytes:
        """Return the payload. Raises InvalidJob and NoPayload."""
        asker = Asker(received.tenant)
        if self._lifetimes.is_over(received):
            raise NoPayload(_LATE)
        try:
            return await self._lifetimes.while_alive(received, lambda: self._in_turn(asker, url, stack))
        except JobIsOver:
            raise NoPayload(_LATE) from None
        except Unreadable as unreadable:
            if unreadable.is_outage:
                raise NoPayload(f"payload_url: {unreadable}") from None
            raise _refused(received, str(unreadable)) from None

    async def _in_turn(self, asker: Asker, url: str, stack: AsyncExitStack) -> bytes:
        await stack.aclose()  # frees the place of an earlier call, whose cancellation was taken back
        async with self._fetcher.at_origin(url, asker):
            await stack.enter_async_context(self._fetcher.place(asker))
            return await self._fetcher.fetched(url, asker)


def _refused(received: ReceivedJob, reason: str) -> InvalidJob:
    return invalid_job(received, "payload_url", f"the payload cannot be used: {reason}")
