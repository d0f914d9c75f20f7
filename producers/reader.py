"""A consumer that only looks: it joins no group, so it takes nothing away from those who work."""

from __future__ import annotations

from typing import Any

from kafka import KafkaConsumer

from producers.connection import Connection, connect
from schemas.settings import KafkaSettings


class CommittedReader(Connection):
    """Of a transaction that was aborted, or is still open, it sees nothing (read_committed).

    Raises ProducerError, as do its children's methods.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._consumer: Any = connect(
            KafkaConsumer,
            settings,
            group_id=None,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()
