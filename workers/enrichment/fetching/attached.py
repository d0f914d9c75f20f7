"""Fetches the images and the payload of a job, behind the egress guard, so that no engine fetches a URL of a job.

robots.txt is not checked, since a job's author chose the image or document, not a crawler. A payload may also be an
object in the operator's buckets (`s3`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from schemas.images import IMAGE_TYPES, data_url, media_type_of
from telemetry.logs import origin_of
from workers.enrichment.evidence import Unreadable
from workers.enrichment.fetching.fetch import Fetcher
from workers.enrichment.fetching.s3 import S3Objects
from workers.enrichment.settings import EnrichmentSettings, PayloadSettings
from workers.enrichment.turns import Asker, Turns

PAUSES = (0.5, 2.0)
"""The pauses, in seconds, before the second and the third try."""
_IMAGES: Final = ", ".join(IMAGE_TYPES)
_PAYLOADS: Final = "application/json, */*;q=0.1"


@dataclass(slots=True)
class Room:
    """The number of bytes that several fetches may still receive together."""

    left: int
    beyond: str
    """The error's text if they receive more."""

    def take(self, count: int) -> None:
        """Subtract a piece of `count` bytes from the room. Raises Unreadable if fewer bytes are left."""
        self.left -= count
        if self.left < 0:
            raise Unreadable(self.beyond)


class _Attached:
    """Fetches parts of jobs. At most `jobs` jobs have such parts in memory at once; tenants take turns.

    At most half as many jobs of one tenant fetch from the same origin at once, so a hung server leaves places to the
    tenant's other jobs.
    """

    def __init__(self, fetcher: Fetcher, jobs: int, seconds: float) -> None:
        self._fetcher = fetcher
        self._seconds = seconds
        self._jobs = Turns(jobs, kept=jobs // 4)
        self._most_at_origin = max(1, jobs // 2)
        self._at_origins: dict[tuple[str, str], Turns] = {}
        """The turns of each tenant at each origin."""

    def place(self, asker: Asker) -> AbstractAsyncContextManager[None]:
        """Wait until the job may have its part in memory. Its place is freed when the context ends."""
        return self._jobs.place(asker)

    @asynccontextmanager
    async def at_origins(self, urls: Iterable[str], asker: Asker) -> AsyncIterator[None]:
        """Wait until the job may fetch from the origins of all URLs. The job may fetch until the context ends.

        Call this before `place`: otherwise jobs at a hung server would keep their places in memory.
        """
        keys = sorted({(asker.tenant, origin_of(url)) for url in urls})  # in the same order, so that no jobs deadlock
        try:
            async with AsyncExitStack() as stack:
                for key in keys:
                    turns = self._at_origins.setdefault(key, Turns(self._most_at_origin))
                    await stack.enter_async_context(turns.place(asker))
                yield
        finally:
            for key in keys:
                if key in self._at_origins and self._at_origins[key].is_idle:
                    del self._at_origins[key]

    async def _in_time(self, fetch: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the result of `fetch()`. After an outage, call it again. Raises the Unreadable of the last call."""
        try:
            async with asyncio.timeout(self._seconds):
                for pause in PAUSES:
                    try:
                        return await fetch()
                    except Unreadable as unreadable:
                        if not unreadable.is_outage:
                            raise
                    await asyncio.sleep(pause)
                return await fetch()
        except TimeoutError:
            raise Unreadable(f"it took longer than {self._seconds:g} s", is_outage=True) from None


class UnreadableImage(Exception):  # noqa: N818 - as Unreadable
    """An image cannot be read. `is_outage` is true if the image's server is at fault, else false: the job is wrong."""

    def __init__(self, url: str, reason: str, *, is_outage: bool) -> None:
        super().__init__(reason)
        self.url = url
        self.is_outage = is_outage


class ImageFetcher(_Attached):
    """Fetches images for all jobs of a worker."""

    def __init__(self, fetcher: Fetcher, settings: EnrichmentSettings) -> None:
        super().__init__(fetcher, settings.image_jobs, settings.image_seconds)
        self._most = settings.image_bytes

    async def fetched(self, urls: Mapping[str, int], asker: Asker) -> dict[str, str]:
        """Return each URL with its image as a data URL. Raises UnreadableImage for the first URL without an image.

        `urls` maps each URL to the number of times that the job names the URL. An image is fetched once, but its bytes
        count as often as the job names the image, since the engine's request repeats the bytes.
        """
        room = Room(self._most, f"the job's images are larger than {self._most} bytes together")
        tasks = [asyncio.create_task(self._image(url, asker, room, times)) for url, times in urls.items()]
        try:
            return dict(zip(urls, await asyncio.gather(*tasks), strict=True))
        finally:
            for task in tasks:
                task.cancel()

    async def _image(self, url: str, asker: Asker, room: Room, times: int) -> str:
        async def once() -> bytes:
            taken = 0

            def take(count: int) -> None:
                nonlocal taken
                taken += count * times
                room.take(count * times)

            try:
                return (await self._fetcher.fetch(url, asker, counted=take, accept=_IMAGES)).body
            except Unreadable:
                room.left += taken
                raise

        try:
            image = await self._in_time(once)
        except Unreadable as unreadable:
            raise UnreadableImage(url, str(unreadable), is_outage=unreadable.is_outage) from None
        media_type = media_type_of(image)
        if media_type is None:
            raise UnreadableImage(url, "it is no png, jpeg, gif or webp image", is_outage=False)
        return data_url(media_type, image)


class PayloadFetcher(_Attached):
    """Fetches the documents at `payload_url` for all jobs of a worker, also from the operator's buckets.

    Raises ProcessError if the settings name buckets and boto3 cannot be used.
    """

    def __init__(self, fetcher: Fetcher, settings: PayloadSettings) -> None:
        super().__init__(fetcher, settings.jobs, settings.seconds)
        self._most = settings.most_bytes
        self._objects = S3Objects(settings)

    async def fetched(self, url: str, asker: Asker) -> bytes:
        """Return the document's bytes. Raises Unreadable; `is_outage` is true if the job is not at fault."""

        async def once() -> bytes:
            if url.startswith("s3://"):
                return await self._objects.read(url, asker.tenant, self._most)
            room = Room(self._most, f"it is larger than {self._most} bytes")
            return (await self._fetcher.fetch(url, asker, counted=room.take, accept=_PAYLOADS)).body

        return await self._in_time(once)

    def close(self) -> None:
        """End the threads that read from buckets."""
        self._objects.close()
