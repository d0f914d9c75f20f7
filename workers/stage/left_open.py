"""Logs which topics had partitions that a dead process left open.

A topic gets one line a minute, because hundreds of its partitions may have been left open.
"""

from __future__ import annotations

from collections import Counter

from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.throttle import LogThrottle
from workers.stage.partition import Partition

SAY_SECONDS = 60.0
"""The shortest time between two lines about a topic.

Partitions are opened one by one, when their first records arrive, and would log a line each.
"""

log = get_logger()


class LeftOpen:
    """Counts the partitions that were left open, and logs their number. Only the Kafka thread calls the methods."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._throttle = LogThrottle(SAY_SECONDS)
        self._partitions: Counter[str] = Counter()
        """The number of each topic's partitions that no log line has counted yet."""
        self._suspects: Counter[str] = Counter()

    def note(self, partition: Partition) -> None:
        """Count a partition that its last owner did not release. `say` logs the number."""
        self._partitions[partition.topic] += 1
        self._suspects[partition.topic] += len(partition.suspects)

    def say(self) -> None:
        """Log one line for each topic with new partitions, unless a line about the topic is recent."""
        for topic in list(self._partitions):
            if self._throttle.admit(self._clock.monotonic(), topic) is not None:
                log.warning(
                    "The last owner of partitions did not release them; trying their first records in small groups.",
                    action="partition-left-open",
                    topic=topic,
                    partitions=self._partitions.pop(topic),
                    suspects=self._suspects.pop(topic),
                )
