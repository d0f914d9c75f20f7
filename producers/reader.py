"""A consumer that only looks: it joins no group, so it takes nothing away from those who work."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from kafka import KafkaConsumer

from producers.connection import connect
from schemas.settings import KafkaSettings


class CommittedReader:
    """Of a transaction that was aborted, or is still open, it sees nothing (read_committed). A context manager.

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
