"""Announces a worker in `fleet_workers`: its models and adapters, and how long its answers take.

`postback submit` warns before it sends a job for a name that no worker announces. The exporter plans the number of
workers with these times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from importlib.metadata import version

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.settings import KafkaSettings
from schemas.worker import ANNOUNCE_SECONDS, announcement, worker_key, write_announcement
from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.kafka.clients import client_config
from workers.system.side_task import SideTask

_POLL_SECONDS = 1.0
_KEPT_MS = 30_000
"""Milliseconds that an announcement may wait for the broker: less than the time between two announcements."""
_FAREWELL_SECONDS = 2.0

log = get_logger()


class Announcer(SideTask):
    """Announces the worker's models, adapters and answer times when the worker starts to run, and then every minute.

    A failed announcement does not affect the worker's readiness, and it delays the worker's end by two seconds at most.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        replica: str,
        lane: str | None,
        models: Callable[[], Sequence[str]],
        adapters: Callable[[], Sequence[str]],
        answer_seconds: Callable[[], float | None],
        clock: Clock,
    ):
        self._kafka = kafka
        self._replica = replica
        self._lane = lane
        self._models = models
        self._adapters = adapters
        self._answer_seconds = answer_seconds
        self._clock = clock
        self._producer: Producer | None = None
        self._failing = False

    async def ended(self) -> None:
        """Announce until cancelled."""
        self._producer = Producer({**client_config(self._kafka), "linger.ms": 0, "message.timeout.ms": _KEPT_MS})
        next_at = self._clock.monotonic()
        while True:
            if self._clock.monotonic() >= next_at:
                next_at = self._clock.monotonic() + ANNOUNCE_SECONDS
                at = int(self._clock.time() * 1000)
                facts = self._models(), at, version("postback"), self._adapters(), self._answer_seconds()
                self._put(self._producer, write_announcement(announcement(self._replica, self._lane, *facts)))
            self._producer.poll(0)
            await asyncio.sleep(_POLL_SECONDS)

    async def close(self) -> None:
        """Write a tombstone if the worker has announced its models. Wait at most two seconds for the broker."""
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
            pass  # the producer's queue is full of earlier announcements of this worker

    def _delivered(self, error: KafkaError | None, _: Message | None) -> None:
        """Log the first of several failures in a row."""
        if error is not None and not self._failing:
            log.warning(
                "Kafka refused this worker's announcement; announcing again within a minute.",
                action="announcement-refused",
                problem=error.name(),
            )
        self._failing = error is not None
