"""The lanes that running workers read, by their announcements: a canary must not forward jobs that no worker reads."""

from __future__ import annotations

import asyncio

from schemas.settings import KafkaSettings
from schemas.worker import LIVE_SECONDS, InvalidAnnouncement, read_announcement
from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.kafka.compacted import CompactedTopic
from workers.system.errors import ProcessError
from workers.system.side_task import SideTask

MOST_WORKERS = 1_000
"""Cap on the workers that are kept. Announcements of further workers are skipped until one of these ends."""
_AGAIN_SECONDS = 60.0

log = get_logger()


class LaneReaders:
    """The lane of each running worker. All methods run on the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._workers: dict[bytes | None, tuple[str | None, float]] = {}
        """Maps each worker's key to its lane, and to the time of its last announcement in monotonic seconds."""

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Apply a record of `fleet_workers`. Unreadable records are skipped."""
        if value is None:
            self._workers.pop(key, None)
            return
        try:
            said = read_announcement(key, value)
        except InvalidAnnouncement:
            return
        if len(self._workers) >= MOST_WORKERS:
            self._workers = {each: seen for each, seen in self._workers.items() if self._is_live(seen[1])}
        if key in self._workers or len(self._workers) < MOST_WORKERS:
            self._workers[key] = said.lane, self._clock.monotonic()

    def has(self, lane: str | None) -> bool:
        """True if a running worker reads this lane; None is the shared lane."""
        return any(read == lane and self._is_live(at) for read, at in self._workers.values())

    def _is_live(self, at: float) -> bool:
        return self._clock.monotonic() - at <= LIVE_SECONDS


class LaneWatch(SideTask):
    """Follows `fleet_workers`. The process goes on if the topic cannot be read: its lanes then count as read."""

    def __init__(self, kafka: KafkaSettings, clock: Clock) -> None:
        self._kafka = kafka
        self._clock = clock
        self._readers = LaneReaders(clock)
        self._topic = self._followed()
        self._is_known = False

    def is_read(self, lane: str | None) -> bool:
        """True if a running worker reads the lane, or if the announcements are not known now."""
        return not self._is_known or bool(self._topic.reasons()) or self._readers.has(lane)

    async def start(self) -> None:
        """Read the present announcements. A failure is logged, and `ended` tries again."""
        try:
            await self._topic.start()
            self._is_known = True
        except ProcessError as error:
            _report(error)

    async def ended(self) -> None:
        """Follow the topic until cancelled. If that fails, try again after a minute."""
        while True:
            try:
                if self._is_known:
                    await self._topic.ended()
            except ProcessError as error:
                self._is_known = False
                _report(error)
            await self._topic.close()
            await asyncio.sleep(_AGAIN_SECONDS)
            self._topic = self._followed()
            await self.start()

    async def close(self) -> None:
        """Stop following."""
        await self._topic.close()

    def _followed(self) -> CompactedTopic:
        kept_ms = round(1000 * LIVE_SECONDS)
        return CompactedTopic(self._kafka, self._kafka.topics.workers, self._readers.apply, self._clock, kept_ms)


def _report(error: ProcessError) -> None:
    log.warning(
        "The workers' announcements cannot be read; forwarding a candidate's jobs without them for now.",
        action="announcements-unread",
        problem=str(error),
    )
