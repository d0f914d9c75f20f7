"""A consumer that only reads. It joins no group, so workers still get all records."""

from __future__ import annotations

from typing import Any

from producers.connection import Connection, connect
from producers.records import RecordConsumer
from schemas.settings import KafkaSettings

SKEW_MS = 15 * 60 * 1000
"""Largest difference between the clocks that set the timestamps of one partition's records."""


class CommittedReader(Connection):
    """Reads committed records only. Records of aborted and open transactions are not seen (read_committed).

    The constructor and the methods of subclasses raise ProducerError.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._consumer: Any = connect(
            RecordConsumer,
            settings,
            group_id=None,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )

    def _at(self, partitions: list[Any], at_ms: int, otherwise: dict[Any, int]) -> dict[Any, int]:
        """Return the offset of each partition's first record with a timestamp of `at_ms` or later.

        If there is none, or if it is above the partition's `otherwise`, the offset is `otherwise`.
        """
        found = self._consumer.offsets_for_times(dict.fromkeys(partitions, at_ms))
        return {p: min(found[p].offset, otherwise[p]) if found.get(p) else otherwise[p] for p in partitions}

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()
