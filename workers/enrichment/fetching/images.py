"""Fetches a job's images behind the egress guard, so that no engine itself fetches a URL of a job.

robots.txt is not checked, since a job's author chose the image, not a crawler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final

from schemas.images import IMAGE_TYPES, data_url, media_type_of
from workers.enrichment.evidence import Unreadable
from workers.enrichment.fetching.again import tried_again
from workers.enrichment.fetching.fetch import Fetcher
from workers.enrichment.fetching.origin_turns import OriginTurns
from workers.enrichment.fetching.room import Room
from workers.enrichment.settings import EnrichmentSettings
from workers.enrichment.turns import Asker, Turns

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
