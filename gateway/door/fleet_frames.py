"""The state of the fleet for people with the scope `admin`: frames of `postback top`, read in one thread.

A reading keeps its connections to Kafka and the positions that it has reached. Without a reader for IDLE_SECONDS, the
connections are closed.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from gateway.dependency import Dependency
from schemas.settings import KafkaSettings, read_settings
from telemetry.clock import Clock
from workers.stage.progress import done_offsets

if TYPE_CHECKING:  # kafka-python is imported by the first reading, since it takes as long as the whole door
    from cli.operations.top import FleetWatch, Frame

IDLE_SECONDS: Final = 120.0
_READERS: Final = 8
"""The maximum number of readings that wait for the thread. Pages share readings, so that one is usual."""


class FleetFrames:
    """Reads frames. Each process has one such object, and uses it on its event loop."""

    def __init__(self, kafka: KafkaSettings, clock: Clock) -> None:
        self._kafka = kafka
        self._clock = clock
        self._threads = Dependency("Kafka", 1, _READERS)
        self._open = ExitStack()
        self._watch: FleetWatch | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def read(self) -> Frame:
        """Return the state of the fleet now. Raises ProducerError, SettingsRefused and DependencyBusy."""
        if self._idle is not None:
            self._idle.cancel()
        try:
            return await self._threads.run(self._frame)
        finally:
            self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._threads.submit, self._end)

    def close(self) -> None:
        """Close the connections, after the present reading, and end the thread."""
        if self._idle is not None:
            self._idle.cancel()
        self._threads.submit(self._end)
        self._threads.close(drop=False)

    def _frame(self) -> Frame:
        from cli.operations.exporter.replicas import ExporterSettings
        from cli.operations.top import watching

        try:
            if self._watch is None:
                opening = watching(self._kafka, read_settings(ExporterSettings), done_offsets, self._clock)
                self._watch = self._open.enter_context(opening)
            return self._watch.frame()
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        """Close the connections. The next reading opens new ones."""
        self._watch = None
        self._open.close()
