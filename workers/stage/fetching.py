"""Which of the delivered records are taken, and which partitions are fetched from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.stage.held import Held
from workers.stage.intake import Intake
from workers.stage.partition import Partition, Phase
from workers.stage.record import Record
from workers.stage.watch import Watch

STALL_SECONDS = 10.0
"""How long a partition that has records may deliver none before it is sought again."""

log = get_logger()


class Fetching:
    """Joins the intake to the ledgers. Writes what a partition notes of its deliveries. The Kafka thread owns it."""

    def __init__(self, held: Held, intake: Intake, watch: Watch, clock: Clock) -> None:
        self._held = held
        self._intake = intake
        self._watch = watch
        self._clock = clock

    def find(
        self, records: Iterable[Record], ends: Iterable[tuple[str, int, int]]
    ) -> tuple[list[tuple[Partition, Record]], list[tuple[Partition, int]]]:
        """Find the partition of each record and each end; those of partitions that are not held are left out.

        Raises TopicMadeAnew where they are of another topic of that name: for a moment the client reads it before the
        group knows. Kafka is asked where a partition goes back although nothing sought it, and where its first record
        comes some time after it was opened.
        """
        held, doubtful = self._held.partitions, set()
        found_ends = []
        for topic, number, offset in ends:
            partition = held.get((topic, number))
            if partition is not None:
                found_ends.append((partition, offset))
                if offset < partition.position:
                    doubtful.add(topic)
        found = []
        for record in records:
            partition = held.get((record.topic, record.partition))
            if partition is not None:
                found.append((partition, record))
                comes_late = partition.phase is Phase.OPEN and not partition.begun
                if comes_late or record.offset < partition.position:
                    doubtful.add(record.topic)
                partition.position = record.offset
        if doubtful:
            self._held.require_same(doubtful)
        return found, found_ends

    def take(self, found: Iterable[tuple[Partition, Record]]) -> list[tuple[Partition, Record]]:
        """Take records into the ledgers of their partitions. Returns those that are this worker's to handle."""
        now = self._clock.monotonic()
        return [(partition, record) for partition, record in found if self._take(partition, record, now)]

    def reach(self, ends: Iterable[tuple[Partition, int]]) -> list[Partition]:
        """Note ends of partitions: offsets that Kafka skipped before them are done. Returns the partitions."""
        now, reached = self._clock.monotonic(), []
        for partition, offset in ends:
            if partition.phase is not Phase.OPEN or partition.rewind_to is not None:
                continue  # what was dropped before this end is no gap: it is fetched again
            if partition.ledger.fits(offset):
                if offset > partition.ledger.next_offset:
                    self._watch.gap(partition, offset)
                partition.last_seen, partition.at_end = now, True
                partition.ledger.reach(offset)
                reached.append(partition)
        return reached

    def seek_stalled(self) -> None:
        """Have partitions sought again that have records to give and have given none for STALL_SECONDS."""
        now = self._clock.monotonic()
        for partition in self._held.partitions.values():
            if partition.phase is not Phase.OPEN or partition.paused or partition.rewind_to is not None:
                continue  # it is sought anyway, and further back than here
            if now - partition.last_seen < STALL_SECONDS:
                continue
            partition.last_seen = now
            marks = self._intake.watermarks(partition.id, cached=True)
            owed = partition.ledger.next_owed  # which may be something that was given back
            if not partition.at_end or (marks is not None and marks[1] > owed):
                partition.fetch_again(owed)

    def flow(self, pause: Sequence[Partition], resume: Sequence[Partition]) -> None:
        """Pause and resume partitions; a call that fails while an assignment is being made is repeated next round."""
        if not pause and not resume:
            return
        if self._intake.flow([p.id for p in pause], [(*p.id, p.rewind_to) for p in resume]):
            for partition in pause:
                partition.paused = True
            for partition in resume:
                partition.resume(self._clock.monotonic())

    def _take(self, partition: Partition, record: Record, now: float) -> bool:
        partition.last_seen, partition.at_end = now, False
        if partition.rewind_to is not None and record.offset >= partition.rewind_to:
            return False  # it is fetched again from there
        if partition.phase is Phase.OPEN and not self._has_offset(partition, record.offset):
            return False
        partition.fetched_to = record.offset + 1
        if partition.phase is not Phase.OPEN or not partition.ledger.fits(record.offset):
            partition.fetch_again(record.offset)
            return False
        if record.offset > partition.ledger.next_offset:
            self._watch.gap(partition, record.offset)
        partition.begun = True
        if not partition.ledger.take(record.offset):
            return False
        self._held.load.take(partition, record)
        return True

    def _has_offset(self, partition: Partition, offset: int) -> bool:
        """Whether the partition has the offset that a record states; where that is not known, it is believed.

        Else the record is left out. It stands at `fetched_to`, or behind offsets without records. The client would go
        on behind the stated offset, so the partition is sought one further: records of others may follow.
        """
        if offset <= partition.ledger.next_offset:
            return True
        for cached in (True, False):  # a fetch brings the end with it, but for one that failed
            marks = self._intake.watermarks(partition.id, cached=cached)
            if marks is not None and offset < marks[1]:
                return True
        if marks is None:
            return True
        place = max(partition.fetched_to, marks[0])
        if partition.ledger.fits(place):
            self._leave_out(partition, place, offset)
        partition.fetch_again(partition.fetched_to)
        return False

    def _leave_out(self, partition: Partition, place: int, stated: int) -> None:
        log.error(
            "A record states an offset behind its partition's end; leaving it out.",
            action="offset-behind-end",
            topic=partition.topic,
            partition=partition.number,
            offset=place,
            stated=stated,
        )
        if place > partition.ledger.next_offset:
            self._watch.gap(partition, place)
        partition.ledger.reach(place + 1)
        partition.fetched_to = place + 1
