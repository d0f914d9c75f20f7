"""Watches the UUIDs of a process's topics, because a topic that is deleted and created again has another UUID."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from confluent_kafka.admin import AdminClient

from schemas.settings import KafkaSettings
from telemetry.logs import get_logger
from workers.kafka.clients import asking_config
from workers.kafka.topics import AccessDenied, BrokerAway, known_ids
from workers.stage.topic_ids import TopicMadeAnew, require_same
from workers.system.side_task import SideTask

LOOK_SECONDS = 15.0

log = get_logger()


class TopicWatch(SideTask):
    """Ends the process when one of its topics was deleted and created again.

    A stage checks only the topics that it reads, before the first record of each assignment. A TopicWatch also checks
    topics that the process only writes to. It checks compacted topics too, because facts read from a deleted topic are
    stale.
    """

    def __init__(self, kafka: KafkaSettings, ids: Mapping[str, str], look_seconds: float = LOOK_SECONDS) -> None:
        self._kafka = kafka
        self._ids = ids
        self._look_seconds = look_seconds
        self._missing: list[str] = []

    def reasons(self) -> list[str]:
        """Return one reason for each topic that is gone."""
        return [
            f"the topic {name} does not exist any more; `postback topics create` makes it" for name in self._missing
        ]

    async def ended(self) -> None:
        """Check the topics every `look_seconds` until cancelled. Raises TopicMadeAnew."""
        client = AdminClient(asking_config(self._kafka))
        while True:
            await asyncio.sleep(self._look_seconds)
            await self._look(client)

    async def _look(self, client: AdminClient) -> None:
        try:
            found = await known_ids(client, self._kafka, list(self._ids))
        except (BrokerAway, AccessDenied):
            return  # the stages report that Kafka is away
        self._missing = [name for name in self._ids if name not in found]
        try:
            require_same(self._ids, found)
        except TopicMadeAnew as anew:
            log.error(
                f"Topic {anew.topic} was deleted and created again; draining and ending.",
                action="topic-replaced",
                topic=anew.topic,
            )
            raise
