"""The images of a job: fetched before the engine sees the job, which then carries them as data URLs."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from schemas.codec import ReceivedJob
from schemas.images import is_data_url
from schemas.job import ImagePart, Message
from workers.engines.base import NO_IMAGES, Engine
from workers.enrichment.fetching.images import ImageFetcher, UnreadableImage
from workers.enrichment.turns import Asker
from workers.inference.job_identity import invalid_job
from workers.inference.lifetime import JobIsOver, Lifetimes
from workers.inference.pace import EnginePace
from workers.inference.phases import Phases


class NoImage(Exception):  # noqa: N818 - named after the event, as NothingFound is
    """A server did not send a job's image in time. The text names the field and the reason."""


@dataclass(frozen=True, slots=True)
class SeenJob:
    """A job whose images are data URLs."""

    received: ReceivedJob
    fetch_ms: float
    """Milliseconds that the wait for a turn and the fetches took together."""


class Images:
    """Replaces the image URLs in jobs by data URLs with the images."""

    def __init__(
        self, engine: Engine, fetcher: ImageFetcher, lifetimes: Lifetimes, pace: EnginePace, phases: Phases
    ) -> None:
        self._engine = engine
        self._fetcher = fetcher
        self._lifetimes = lifetimes
        self._pace = pace
        self._phases = phases

    @asynccontextmanager
    async def seen(self, received: ReceivedJob) -> AsyncIterator[SeenJob]:
        """Yield the job with each image as a data URL. The job's place in memory is freed when the block ends.

        Raises InvalidJob if the model takes no images, or if an image cannot be read and the job is at fault. Raises
        NoImage if a server is at fault, or if the job is cancelled or expires meanwhile.
        """
        images = received.job.images
        is_refused = not self._engine.takes_images(received.job.model_id)
        if is_refused and received.alias is None:
            raise invalid_job(received, images[0][0], NO_IMAGES)
        urls = Counter(image.url for _, image in images if not is_data_url(image.url))
        if is_refused or not urls:
            # In a rollout, the engine itself refuses the job, so that the refusal counts against the candidate.
            yield SeenJob(received, 0.0)
            return
        async with AsyncExitStack() as stack:
            with self._pace.enriching(), self._phases.timed("enrich", received) as phase:
                found = await self._found(received, urls, stack)
            yield SeenJob(_with_images(received, found), phase.ms)

    async def _found(self, received: ReceivedJob, urls: Mapping[str, int], stack: AsyncExitStack) -> Mapping[str, str]:
        """Return the data URL of each URL. `urls` maps each URL to its number of images.

        Raises InvalidJob and NoImage.
        """
        asker = Asker(received.tenant)
        try:
            return await self._lifetimes.while_alive(received, lambda: self._in_turn(asker, urls, stack))
        except JobIsOver:
            raise NoImage("the job ended before its images were fetched") from None
        except UnreadableImage as unreadable:
            place = next(place for place, image in received.job.images if image.url == unreadable.url)
            if unreadable.is_outage:
                raise NoImage(f"{place}: {unreadable}") from None
            raise invalid_job(received, place, f"the image cannot be used: {unreadable}") from None

    async def _in_turn(self, asker: Asker, urls: Mapping[str, int], stack: AsyncExitStack) -> Mapping[str, str]:
        await stack.aclose()  # frees the place of an earlier call, whose cancellation was taken back
        async with self._fetcher.at_origins(urls, asker):
            await stack.enter_async_context(self._fetcher.place(asker))
            return await self._fetcher.fetched(urls, asker)


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
