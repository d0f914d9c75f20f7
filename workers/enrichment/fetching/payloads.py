"""Fetches the document at a job's `payload_url`, over the connections for sources, or from the operator's buckets.

robots.txt is not checked, since a job's author chose the document, not a crawler.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Final

from workers.enrichment.evidence import Unreadable
from workers.enrichment.fetching.again import tried_again
from workers.enrichment.fetching.fetch import Fetcher
from workers.enrichment.fetching.origin_turns import OriginTurns
from workers.enrichment.fetching.room import Room
from workers.enrichment.fetching.s3 import S3Objects
from workers.enrichment.fetching.settings import PayloadSettings
from workers.enrichment.turns import Asker, Turns

_ACCEPT: Final = "application/json, */*;q=0.1"


class PayloadFetcher:
    """Fetches payloads for all jobs of a worker. A bounded number of jobs has payloads in memory.

    At most half as many jobs of one tenant fetch from the same server or bucket at once, so a hung server leaves places
    to the tenant's other jobs.

    Raises ProcessError if the settings name buckets and boto3 cannot be used.
    """

    def __init__(self, fetcher: Fetcher, settings: PayloadSettings) -> None:
        self._fetcher = fetcher
        self._settings = settings
        self._objects = S3Objects(settings)
        self._jobs = Turns(settings.jobs, kept=settings.jobs // 4)
        self._origins = OriginTurns(max(1, settings.jobs // 2))

    def at_origin(self, url: str, asker: Asker) -> AbstractAsyncContextManager[None]:
        """Wait until the job may fetch from the URL's origin. Call this before `place`."""
        return self._origins.at([url], asker)

    def place(self, asker: Asker) -> AbstractAsyncContextManager[None]:
        """Wait until the job may have a payload in memory. Its place in memory is freed when the context ends."""
        return self._jobs.place(asker)

    async def fetched(self, url: str, asker: Asker) -> bytes:
        """Return the document's bytes. Raises Unreadable; `is_outage` is true if the job is not at fault."""
        seconds = self._settings.seconds
        try:
            async with asyncio.timeout(seconds):
                return await tried_again(lambda: self._once(url, asker))
        except TimeoutError:
            raise Unreadable(f"it took longer than {seconds:g} s", is_outage=True) from None

    def close(self) -> None:
        """End the threads that read from buckets."""
        self._objects.close()

    async def _once(self, url: str, asker: Asker) -> bytes:
        most_bytes = self._settings.most_bytes
        if url.startswith("s3://"):
            return await self._objects.read(url, asker.tenant, most_bytes)
        room = Room(most_bytes, f"it is larger than {most_bytes} bytes")
        return (await self._fetcher.fetch(url, asker, counted=room.take, accept=_ACCEPT)).body
