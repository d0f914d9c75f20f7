"""Fetches the images and the payload of a job, behind the egress guard, so that no engine fetches a URL of a job.

robots.txt is not checked, since a job's author chose the image or document, not a crawler. A payload may also be an
object in the operator's buckets (`s3`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from schemas.images import IMAGE_TYPES, data_url, media_type_of
from telemetry.logs import origin_of
from workers.enrichment.evidence import Unreadable
from workers.enrichment.fetching.fetch import Fetcher
from workers.enrichment.fetching.s3 import S3Objects
from workers.enrichment.settings import EnrichmentSettings, PayloadSettings
from workers.enrichment.turns import Asker, Turns

T = TypeVar("T")

PAUSES = (0.5, 2.0)
"""The pauses, in seconds, before the second and the third try."""


async def tried_again(fetch: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `fetch()`. After an outage, call it again. Raises the Unreadable of the last call."""
    for pause in PAUSES:
        try:
            return await fetch()
        except Unreadable as unreadable:
            if not unreadable.is_outage:
                raise
        await asyncio.sleep(pause)
    return await fetch()


@dataclass(slots=True)
class Room:
    """The number of bytes that the fetches may still receive. `beyond` is the error's text if they receive more."""

    left: int
    beyond: str

    def take(self, count: int) -> None:
        """Subtract a piece of `count` bytes from the room. Raises Unreadable if fewer bytes are left."""
        self.left -= count
        if self.left < 0:
            raise Unreadable(self.beyond)

    def give_back(self, count: int) -> None:
        """Add the `count` bytes of a failed try to the room again."""
        self.left += count


class OriginTurns:
    """At most `places` jobs of one tenant fetch from the same origin at once."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._turns: dict[tuple[str, str], Turns] = {}
        """The turns at each origin; the keys are tenant and origin."""

    @asynccontextmanager
    async def at(self, urls: Iterable[str], asker: Asker) -> AsyncIterator[None]:
        """Wait until the job may fetch from the origins of all URLs. The job may fetch until the context ends.

        Call this before the job waits for a place in memory: otherwise jobs at a hung server would keep their places.
        """
        async with AsyncExitStack() as stack:
            for origin in sorted({origin_of(url) for url in urls}):  # all jobs use this order, so that none deadlocks
                await stack.enter_async_context(self._at_one(origin, asker))
            yield

    @asynccontextmanager
    async def _at_one(self, origin: str, asker: Asker) -> AsyncIterator[None]:
        key = asker.tenant, origin
        turns = self._turns.setdefault(key, Turns(self._places))
        try:
            async with turns.place(asker):
                yield
        finally:
            if turns.is_idle:
                self._turns.pop(key, None)


_ACCEPT: Final = ", ".join(IMAGE_TYPES)
_NO_IMAGE: Final = "it is no png, jpeg, gif or webp image"


class UnreadableImage(Exception):  # noqa: N818 - as Unreadable
    """An image cannot be read. `is_outage` is true if the image's server is at fault, else false: the job is wrong."""

    def __init__(self, url: str, reason: str, *, is_outage: bool) -> None:
        super().__init__(reason)
        self.url = url
        self.is_outage = is_outage


class ImageFetcher:
    """Fetches images for all jobs of a worker.

    At most `image_jobs` jobs have images in memory at once; tenants take turns. At most half as many jobs of one tenant
    fetch from the same server at once, so a hung server leaves places to the tenant's other jobs.
    """

    def __init__(self, fetcher: Fetcher, settings: EnrichmentSettings) -> None:
        self._fetcher = fetcher
        self._settings = settings
        self._jobs = Turns(settings.image_jobs, kept=settings.image_jobs // 4)
        self._origins = OriginTurns(max(1, settings.image_jobs // 2))

    def at_origins(self, urls: Iterable[str], asker: Asker) -> AbstractAsyncContextManager[None]:
        """Wait until the job may fetch from the origins of all URLs. Call this before `place`."""
        return self._origins.at(urls, asker)

    def place(self, asker: Asker) -> AbstractAsyncContextManager[None]:
        """Wait until the job may have images in memory. Its place in memory is freed when the context ends."""
        return self._jobs.place(asker)

    async def fetched(self, urls: Mapping[str, int], asker: Asker) -> dict[str, str]:
        """Return each URL with its image as a data URL. Raises UnreadableImage for the first URL without an image.

        `urls` maps each URL to the number of times that the job names the URL. An image is fetched once, but its bytes
        count as often as the job names the image, since the engine's request repeats the bytes.
        """
        most = self._settings.image_bytes
        room = Room(most, f"the job's images are larger than {most} bytes together")
        tasks = [asyncio.create_task(self._in_time(url, asker, _Share(room, times))) for url, times in urls.items()]
        try:
            return dict(zip(urls, await asyncio.gather(*tasks), strict=True))
        finally:
            for task in tasks:
                task.cancel()

    async def _in_time(self, url: str, asker: Asker, share: _Share) -> str:
        seconds = self._settings.image_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._tried(url, asker, share)
        except TimeoutError:
            raise UnreadableImage(url, f"it took longer than {seconds:g} s", is_outage=True) from None

    async def _tried(self, url: str, asker: Asker, share: _Share) -> str:
        """Fetch one image; if the server fails, try again."""
        try:
            image = await tried_again(lambda: self._once(url, asker, share))
        except Unreadable as unreadable:
            raise UnreadableImage(url, str(unreadable), is_outage=unreadable.is_outage) from None
        media_type = media_type_of(image)
        if media_type is None:
            raise UnreadableImage(url, _NO_IMAGE, is_outage=False)
        return data_url(media_type, image)

    async def _once(self, url: str, asker: Asker, share: _Share) -> bytes:
        try:
            return (await self._fetcher.fetch(url, asker, counted=share.take, accept=_ACCEPT)).body
        except Unreadable:
            share.give_back()
            raise


class _Share:
    """The part of the room that one image takes: the image's size, as many times as the job names the image."""

    def __init__(self, room: Room, times: int) -> None:
        self._room = room
        self._times = times
        self._taken = 0

    def take(self, count: int) -> None:
        """Subtract a piece of the image from the room. Raises Unreadable if too little room is left."""
        self._taken += count * self._times
        self._room.take(count * self._times)

    def give_back(self) -> None:
        """After a failed try, add its bytes to the room again."""
        self._room.give_back(self._taken)
        self._taken = 0


_ACCEPT_PAYLOAD: Final = "application/json, */*;q=0.1"


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
        return (await self._fetcher.fetch(url, asker, counted=room.take, accept=_ACCEPT_PAYLOAD)).body
