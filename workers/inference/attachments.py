"""Parts of a job that the worker fetches before it screens and grounds the job: the question and the images."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from schemas.codec import ReceivedJob
from schemas.images import is_data_url
from schemas.job import ImagePart, Message
from schemas.payload import UnusablePayload, with_payload
from schemas.unknown import joined
from workers.engines.base import NO_IMAGES, Engine
from workers.enrichment.evidence import Unreadable
from workers.enrichment.fetching.attached import ImageFetcher, PayloadFetcher, UnreadableImage
from workers.enrichment.turns import Asker
from workers.inference.context import Finish, JobContext, Missing
from workers.inference.job_identity import invalid_job
from workers.inference.lifetime import JobIsOver, Lifetimes
from workers.inference.observed import Phases
from workers.inference.pace import EnginePace

_NO_PAYLOAD: Final = "no_payload"
_NO_IMAGE: Final = "no_image"
_Turn = Callable[[], AbstractAsyncContextManager[None]]
T = TypeVar("T")


class Attachments:
    """Puts the question at `payload_url` into jobs, and data URLs in place of the URLs of images."""

    def __init__(
        self,
        engine: Engine,
        payloads: PayloadFetcher,
        images: ImageFetcher,
        lifetimes: Lifetimes,
        pace: EnginePace,
        phases: Phases,
    ) -> None:
        self._engine = engine
        self._payloads = payloads
        self._images = images
        self._lifetimes = lifetimes
        self._pace = pace
        self._phases = phases

    async def payload(self, job: JobContext) -> Finish | Missing | None:
        """Put the payload's question into the job. Its place in memory is freed at the end of the job's way.

        Return Missing if a server is at fault, or if the job is over before its payload is fetched.
        """
        received = job.received
        url, asker = received.job.payload_url or "", Asker(received.tenant)
        turn, room = partial(self._payloads.at_origins, [url], asker), partial(self._payloads.place, asker)
        try:
            payload = await self._fetched(job, turn, room, partial(self._payloads.fetched, url, asker))
            # Use a thread, because hashing 8 MiB takes 20 ms, and does not need Python's lock.
            asked, unknown = await asyncio.to_thread(with_payload, received.job, payload)
        except JobIsOver:
            return Missing(_NO_PAYLOAD, "the job ended before its payload was fetched")
        except (Unreadable, UnusablePayload) as unusable:
            if isinstance(unusable, Unreadable) and unusable.is_outage:
                return Missing(_NO_PAYLOAD, f"payload_url: {unusable}")
            reason = f"the payload cannot be used: {unusable}"
            return Finish(letter=invalid_job(received, "payload_url", reason))
        job.size = len(payload)
        job.received = replace(received, job=asked, unknown=joined(received.unknown, unknown))
        return None

    async def images(self, job: JobContext) -> Finish | Missing | None:
        """Fetch the job's images. Their place in memory is freed at the end of the job's way.

        Return Missing if a server is at fault, or if the job is over before its images are fetched.
        """
        received = job.received
        images = received.job.images
        urls = Counter(image.url for _, image in images if not is_data_url(image.url))
        if not self._engine.takes_images(received.job.model_id):
            # In a rollout, the engine itself refuses the job, so that the refusal counts against the candidate.
            return Finish(letter=invalid_job(received, images[0][0], NO_IMAGES)) if received.alias is None else None
        if not urls:
            return None
        asker = Asker(received.tenant)
        turn, room = partial(self._images.at_origins, urls, asker), partial(self._images.place, asker)
        try:
            found = await self._fetched(job, turn, room, partial(self._images.fetched, urls, asker))
        except JobIsOver:
            return Missing(_NO_IMAGE, "the job ended before its images were fetched")
        except UnreadableImage as unreadable:
            place = next(place for place, image in images if image.url == unreadable.url)
            if unreadable.is_outage:
                return Missing(_NO_IMAGE, f"{place}: {unreadable}")
            return Finish(letter=invalid_job(received, place, f"the image cannot be used: {unreadable}"))
        job.received = _with_images(received, found)
        return None

    async def _fetched(self, job: JobContext, turn: _Turn, room: _Turn, read: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `read` after a turn at the origins, with a place in memory until the job's way ends.

        Raises JobIsOver, and the errors of `read`.
        """
        held = await job.holding().enter_async_context(AsyncExitStack())

        async def begin() -> T:
            await held.aclose()  # frees the place of an earlier call, whose cancellation was taken back
            async with turn():
                await held.enter_async_context(room())
                return await read()

        if self._lifetimes.is_over(job.received):
            raise JobIsOver
        began = self._phases.now()
        with self._pace.enriching(), self._phases.span("enrich", job.received):
            found = await self._lifetimes.while_alive(job.received, begin)
        job.fetched(self._phases.now() - began)
        return found


def _with_images(received: ReceivedJob, found: Mapping[str, str]) -> ReceivedJob:
    messages = [_message(message, found) for message in received.job.messages or ()]
    return replace(received, job=received.job.model_copy(update={"messages": messages}))


def _message(message: Message, found: Mapping[str, str]) -> Message:
    """Return the message with the data URLs instead of the URLs."""
    if not message.images:
        return message
    parts = [_part(part, found) if isinstance(part, ImagePart) else part for part in message.parts]
    return message.model_copy(update={"content": parts})


def _part(part: ImagePart, found: Mapping[str, str]) -> ImagePart:
    url = found.get(part.image_url.url, part.image_url.url)
    return part.model_copy(update={"image_url": part.image_url.model_copy(update={"url": url})})
