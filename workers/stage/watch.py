"""A stage's report on itself: backlog, readiness, liveness and gaps.

The handling of records does not depend on the report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from confluent_kafka import KafkaError, KafkaException

from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from telemetry.throttle import LogThrottle
from workers.stage.partition import Partition, Phase, undone_below
from workers.stage.settler import Settler, SettlerState
from workers.stage.source import Contact, Source

LOOK_SECONDS = 1.0
SAY_AGAIN_SECONDS = 10.0
"""The time for which a repeated error is not logged again."""
STUCK_SECONDS = 60.0
SILENT_SECONDS = 8.0
"""If Kafka is silent for this time, the stage reports that it is not ready.

This time is longer than an ordinary pause of a broker, and readiness still reports a frozen broker within 15 s.
"""
LARGE_GAP = 1_000
"""The smallest gap, in offsets, about which the stage asks Kafka; transactions and compaction leave smaller gaps."""

log = get_logger()


class Watch:
    """The Kafka thread updates this object, and the health server's threads read it."""

    def __init__(self, source: Source, settler: Settler, clock: Clock, metrics: Metrics) -> None:
        self._source = source
        self._settler = settler
        self._clock = clock
        self._metrics = metrics
        self._beat_at = clock.monotonic()
        self._looked_at = 0.0
        self._unready_since: float | None = None
        self._contact = Contact(member=False, silent_seconds=0.0)
        self._throttle = LogThrottle(SAY_AGAIN_SECONDS)

    def beat(self) -> None:
        """Note that the Kafka thread is alive."""
        self._beat_at = self._clock.monotonic()

    @property
    def alive(self) -> bool:
        """True if the Kafka thread called `beat` within a minute. No single call takes a minute."""
        return self._clock.monotonic() - self._beat_at < STUCK_SECONDS

    def reasons(self) -> list[str]:
        """Return the reasons why the stage is not ready; an empty list if the stage is ready."""
        found = []
        contact = self._contact
        if contact.silent_seconds == math.inf:
            found.append("no Kafka broker can be reached")
        elif contact.silent_seconds > SILENT_SECONDS:
            found.append(f"Kafka has not answered for {contact.silent_seconds:.0f} s")
        elif not contact.member:
            found.append("the consumer group has not admitted this process yet")
        if self._unready_since is not None and self._clock.monotonic() - self._unready_since > 1.0:
            found.append(f"a failed transaction is being repaired ({self._settler.state.value})")
        return found

    def broker_error(self, error: KafkaError) -> None:
        """Log an error that the client reports."""
        self._say("Kafka client error.", "kafka-error", error)

    def trouble(self, what: str, error: KafkaException) -> None:
        """Log a failed step that the stage will try again."""
        self._say(f"Trying again: {what}.", "kafka-trouble", error.args[0])

    def gap(self, partition: Partition, offset: int) -> None:
        """Count the offsets that were skipped before `offset`.

        Retention removed the skipped offsets below the log's start. A fetch response contains the log's start. The
        broker is asked only if the client's value may be outdated: at the first record, and at a large gap.
        """
        ledger = partition.ledger
        skipped = offset - ledger.next_offset
        self._metrics.gap_offsets.inc(skipped)
        is_doubtful = skipped >= LARGE_GAP or not (partition.begun or partition.at_end)
        marks = self._source.watermarks(partition.id, cached=not is_doubtful)
        lost = 0 if marks is None else ledger.undone_before(min(marks[0], offset))
        if lost > 0:
            self._metrics.retention_loss.inc(lost)
            log.error(
                "Retention removed records before they were handled; going on with the first record that is left.",
                action="retention-loss",
                topic=partition.topic,
                partition=partition.number,
                records=lost,
            )

    def look(self, partitions: Sequence[Partition]) -> None:
        """Publish the backlog once a second, and note the state of the connection to Kafka."""
        if self._settler.state in (SettlerState.READY, SettlerState.SETTLING):
            self._unready_since = None
        elif self._unready_since is None:
            self._unready_since = self._clock.monotonic()
        due = self._clock.monotonic() - self._looked_at >= LOOK_SECONDS
        if due or not self._contact.member:  # before joining, look in each round, so that readiness does not lag
            self._contact = self._source.contact()
        if not due:
            return
        self._looked_at = self._clock.monotonic()
        for partition in partitions:
            marks = self._source.watermarks(partition.id, cached=True)
            if marks is not None and partition.phase is Phase.OPEN:
                progress = partition.ledger.progress  # records that are done behind a slow one do not count as waiting
                backlog = undone_below(marks[1], progress.base, progress.done)
                self._metrics.backlog.labels(partition.topic, str(partition.number)).set(backlog)

    def gone(self, partition: Partition) -> None:
        """Stop reporting the partition's backlog, because another worker owns the partition."""
        try:
            self._metrics.backlog.remove(partition.topic, str(partition.number))
        except KeyError:
            return  # the partition's backlog was never reported

    def _say(self, message: str, action: str, error: KafkaError) -> None:
        """Log the message, at most once in SAY_AGAIN_SECONDS for each error's name."""
        if self._throttle.admit(self._clock.monotonic(), error.name()) is not None:
            log.warning(message, action=action, error=error.name(), detail=error.str())
