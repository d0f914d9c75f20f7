"""The models that the fleet's workers announce, asked of Kafka at most every few seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from producers.errors import ProducerError
from producers.workers import Announced
from schemas.worker import LIVE_SECONDS
from telemetry.clock import Clock

FRESH_SECONDS = 10.0
Ask = Callable[[], Announced | None]


class ModelsUnknown(Exception):  # noqa: N818 - it names what is missing
    """The workers' models cannot be read from Kafka, and the last answer is too old."""


class FleetModels:
    """Asks Kafka in a thread; requests that come meanwhile share the answer.

    While Kafka is away, the last answer is used for a while.
    """

    def __init__(self, ask: Ask, clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._asking: asyncio.Task[None] | None = None
        self._asked_at: float | None = None
        self._models: tuple[str, ...] = ()

    async def names(self) -> tuple[str, ...]:
        """Return the models' names in the order of their announcement. Raises ModelsUnknown."""
        if self._age() > FRESH_SECONDS:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._refresh())
            await asyncio.shield(self._asking)
        if self._age() > LIVE_SECONDS:
            raise ModelsUnknown
        return self._models

    def _age(self) -> float:
        return self._clock.monotonic() - self._asked_at if self._asked_at is not None else float("inf")

    async def _refresh(self) -> None:
        try:
            announced = await asyncio.to_thread(self._ask)
        except ProducerError:
            return
        self._models = announced.models if announced is not None else ()
        self._asked_at = self._clock.monotonic()
