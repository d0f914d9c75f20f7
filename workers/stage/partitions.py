"""The partitions that this process holds, from their assignment until they are dropped."""

from __future__ import annotations

from collections.abc import Iterable

from confluent_kafka import KafkaException

from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.stage.partition import Load, Partition, Phase
from workers.stage.progress import Progress
from workers.stage.record import Record
from workers.stage.settler import Settler
from workers.stage.sharing import Place
from workers.stage.source import Committed, PartitionId, Source
from workers.stage.topic_ids import Identities
from workers.stage.watch import Watch

OPEN_SECONDS = 5.0
"""The timeout of each request to Kafka that opening a partition needs."""

log = get_logger()


class Partitions:
    """The lowest part of a stage's state, below dispatching and transactions.

    Only the Kafka thread calls the methods.
    """

    def __init__(
        self,
        window_records: int,
        source: Source,
        settler: Settler,
        watch: Watch,
        clock: Clock,
        metrics: Metrics,
        identities: Identities | None,
    ) -> None:
        """`window_records` sizes the first window after a crash if the commit does not state how many records began.

        Without `identities` the stage knows a topic by its name alone, and does not notice if a new topic gets the same
        name.
        """
        self._window_records = window_records
        self._source = source
        self._settler = settler
        self._watch = watch
        self._clock = clock
        self._metrics = metrics
        self._identities = identities
        self._left: dict[PartitionId, Partition] = {}
        """Partitions that this process held earlier, and that had no suspects when the process dropped them."""
        self._generation = 0
        self.held: dict[PartitionId, Partition] = {}
        self.load = Load()

    def assign(self, topic: str, number: int, place: Place) -> Partition:
        """Hold a partition from now on. The partition opens when its first record or end is delivered."""
        self._generation += 1
        partition = Partition(topic, number, self._generation, self._clock.monotonic(), place)
        self.held[partition.id] = partition
        return partition

    def of(self, ids: Iterable[PartitionId]) -> list[Partition]:
        """Return the held partitions among `ids`."""
        return [self.held[key] for key in ids if key in self.held]

    def open(self, delivered: Iterable[Partition]) -> list[Partition]:
        """Open and return the delivered partitions that are not open yet.

        Returns no partition if Kafka does not answer; the stage then fetches the records again. Raises TopicMadeAnew.
        """
        fresh = [partition for partition in delivered if partition.phase is Phase.ASSIGNED]
        if not fresh:
            return []
        marks = self._marks({partition.topic for partition in fresh})
        committed = None if marks is None else self.committed(fresh, OPEN_SECONDS)
        if marks is None or committed is None:
            return []
        for partition in fresh:
            self._open(partition, committed[partition.id], marks[partition.topic])
        log.info("Partitions opened.", action="partitions-opened", partitions=len(fresh))
        return fresh

    @property
    def doubted(self) -> set[str]:
        """Topics that may have been created again. Until Kafka answers, nothing is committed for them."""
        return set() if self._identities is None else self._identities.doubted

    def doubt(self, topics: set[str]) -> None:
        """Ask Kafka if these topics still have the UUIDs that the stage knows. `look` reads the answer."""
        self.doubted.update(topics)

    def look(self) -> None:
        """Ask about doubted topics, or read the answer. Waits for nothing. Raises TopicMadeAnew."""
        if self.doubted and self._identities is not None:
            try:
                self._identities.look(self._clock.monotonic())
            except KafkaException as error:
                self._watch.trouble("Kafka does not give the identity of a topic", error)

    def committed(self, partitions: list[Partition], seconds: float) -> Committed | None:
        """Return the committed progress; None if Kafka does not answer.

        An open transaction of this process may be the cause, so the settler then sweeps again.
        """
        try:
            return self._source.committed([partition.id for partition in partitions], seconds)
        except KafkaException as error:
            self._watch.trouble("the committed progress cannot be read", error)
            self._settler.sweep_again()
            return None

    def give_back(self, partition: Partition, records: list[Record]) -> None:
        """Give back records that were taken and not tried."""
        partition.give_back(records)
        for record in records:
            self.load.let_go(partition, record)

    def drop(self, partition: Partition, *, suspected: bool) -> None:
        """Stop holding a partition. `suspected` means that the partition's next records may have killed a worker."""
        if not suspected:
            self._left[partition.id] = partition
        self.load.forget(partition)
        self._metrics.in_flight.dec(partition.running)
        partition.drop()
        self._watch.gone(partition)
        del self.held[partition.id]

    def _open(self, partition: Partition, progress: Progress | None, mark: bytes | None) -> None:
        if progress is not None and progress.is_of_another_topic(mark):
            log.error(
                "A topic was deleted and created again; ignoring the old topic's progress, and beginning at offset 0.",
                action="topic-made-anew",
                topic=partition.topic,
                partition=partition.number,
                base=progress.base,
            )
            progress = None
            partition.fetch_again(0)
        self._recognise(partition, progress)
        partition.open(progress, self._window_records, mark)

    def _recognise(self, partition: Partition, committed: Progress | None) -> None:
        """If this process itself committed the partition's progress, suspect no record: the last owner is alive.

        The group takes partitions from a process that pauses for longer than the session timeout, and may give them
        back later. Another owner in between would have committed the partition's suspects before dispatching any
        record.
        """
        before = self._left.pop(partition.id, None)
        if before is not None and committed is not None and committed in (before.confirmed, before.sent):
            partition.trust_last_owner()

    def _marks(self, topics: set[str]) -> dict[str, bytes | None] | None:
        """Return the marks of these topics; None if Kafka does not answer. Raises TopicMadeAnew."""
        if self._identities is None:
            return dict.fromkeys(topics)
        try:
            return {**self._identities.marks(topics, OPEN_SECONDS)}
        except KafkaException as error:
            self._watch.trouble("Kafka does not give the identity of a topic", error)
            return None
