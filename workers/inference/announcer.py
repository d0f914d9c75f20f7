"""Announces a worker's models in `fleet_workers`, so that `postback submit` can warn before it sends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.settings import KafkaSettings
from schemas.worker import announcement, worker_key, write_announcement
from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.kafka.clients import client_config

ANNOUNCE_SECONDS = 60.0
_POLL_SECONDS = 1.0
_KEPT_MS = 30_000
"""How long an announcement may wait for its broker: less than until the next one."""
_FAREWELL_SECONDS = 2.0

log = get_logger()


class Announcer:
    """A `SideTask` that announces the worker when it serves, and every minute from then on.

    Neither the worker's readiness nor its end waits for announcements, so a broker that is away costs nothing else.
    """

    def __init__(self, kafka: KafkaSettings, replica: str, lane: str | None, models: Sequence[str], clock: Clock):
        self._kafka = kafka
        self._replica = replica
        self._lane = lane
        self._models = models
        self._clock = clock
        self._producer: Producer | None = None
        self._failing = False

    @property
    def alive(self) -> bool:
        """True: the event loop's own beat tells whether it comes round."""
        return True

    def reasons(self) -> list[str]:
        """None: a worker answers jobs without announcements too."""
        return []

    async def ended(self) -> None:
        """Announce until cancelled."""
        self._producer = Producer({**client_config(self._kafka), "linger.ms": 0, "message.timeout.ms": _KEPT_MS})
        next_at = self._clock.monotonic()
        while True:
            if self._clock.monotonic() >= next_at:
                next_at = self._clock.monotonic() + ANNOUNCE_SECONDS
                at = int(self._clock.time() * 1000)
                said = announcement(self._replica, self._lane, self._models, at)
                self._put(self._producer, write_announcement(said))
            self._producer.poll(0)
            await asyncio.sleep(_POLL_SECONDS)

    async def close(self) -> None:
        """Write the tombstone of an announcement that was made. Waits two seconds for the broker, no longer."""
        producer, self._producer = self._producer, None
        if producer is not None:
            self._put(producer, None)
            await asyncio.to_thread(producer.flush, _FAREWELL_SECONDS)
            producer.purge()

    def _put(self, producer: Producer, value: bytes | None) -> None:
        topic = self._kafka.topics.workers
        try:
            producer.produce(topic, value, worker_key(self._replica), 0, on_delivery=self._delivered)
        except KafkaException as error:
            self._delivered(error.args[0], None)
        except BufferError:
            pass  # the announcements before this one still wait for their broker

    def _delivered(self, error: KafkaError | None, _: Message | None) -> None:
        """Log the first failure of several in a row."""
        if error is not None and not self._failing:
            log.warning(
                "Kafka refused this worker's announcement; announcing again within a minute.",
                action="announcement-refused",
                problem=error.name(),
            )
        self._failing = error is not None
