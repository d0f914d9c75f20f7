"""Fetching: takes delivered records into the ledgers, and pauses, resumes and seeks partitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.stage.partition import Partition, Phase
from workers.stage.partitions import Partitions
from workers.stage.record import Record
from workers.stage.source import Source
from workers.stage.watch import Watch

STALL_SECONDS = 10.0
"""If a partition that has records delivers none for this time, the stage seeks the partition again."""

SILENCE_SECONDS = 0.25
"""The shortest silence after which the stage asks Kafka for the topic's UUID.

A partition's next record may then be of a new topic, because deleting a topic and creating it again takes longer than
this. The record runs meanwhile; only the topic's commits wait for the answer, some milliseconds.
"""

log = get_logger()


class Fetching:
    """Connects the source with the ledgers. Only this class writes the partitions' delivery fields.

    Only the Kafka thread calls the methods.
    """

    def __init__(self, partitions: Partitions, source: Source, watch: Watch, clock: Clock) -> None:
        self._partitions = partitions
        self._source = source
        self._watch = watch
        self._clock = clock

    def find(
        self, records: Iterable[Record], ends: Iterable[tuple[str, int, int]]
    ) -> tuple[list[tuple[Partition, Record]], list[tuple[Partition, int]]]:
        """Find the held partition of each record and each end; leave out records and ends without a held partition.

        The records may come from a new topic of the same name: the client may read the new topic before the group
        coordinator knows about it. The stage doubts the topic in three cases: a partition's offsets go back without a
        seek, the partition's first record arrives only after the partition was opened, or a delivery follows a
        silence. Offsets alone do not show every new topic: if the new topic has more records than the old one, its
        offsets seem to go on.
        """
        held, doubtful, now = self._partitions.held, set(), self._clock.monotonic()
        found_ends = []
        for topic, number, offset in ends:
            partition = held.get((topic, number))
            if partition is not None:
                found_ends.append((partition, offset))
                if offset < partition.position or self._is_after_silence(partition, now):
                    doubtful.add(topic)
        found, seen = [], set[Partition]()
        for record in records:
            partition = held.get((record.topic, record.partition))
            if partition is not None:
                found.append((partition, record))
                if record.offset < partition.position:
                    doubtful.add(record.topic)
                partition.position = record.offset
                seen.add(partition)
        for partition in seen:
            comes_late = partition.phase is Phase.OPEN and not partition.begun
            if comes_late or self._is_after_silence(partition, now):
                doubtful.add(partition.topic)
        if doubtful:
            self._partitions.doubt(doubtful)
        return found, found_ends

    def take(self, found: Iterable[tuple[Partition, Record]]) -> list[tuple[Partition, Record]]:
        """Take records into the ledgers of their partitions. Returns the records that this worker has to handle."""
        now = self._clock.monotonic()
        return [(partition, record) for partition, record in found if self._take(partition, record, now)]

    def reach(self, ends: Iterable[tuple[Partition, int]]) -> list[Partition]:
        """Note that partitions have been read to their end, so that offsets skipped before the end are done.

        Returns these partitions.
        """
        now, reached = self._clock.monotonic(), []
        for partition, offset in ends:
            if partition.phase is not Phase.OPEN or partition.rewind_to is not None:
                continue  # this is no gap, because records missing before this end are fetched again
            if partition.ledger.fits(offset):
                if offset > partition.ledger.next_offset:
                    self._watch.gap(partition, offset)
                partition.last_seen, partition.at_end = now, True
                partition.ledger.reach(offset)
                reached.append(partition)
        return reached

    def wake_stalled(self) -> None:
        """Wake each partition that has delivered nothing for STALL_SECONDS.

        A partition that has never delivered a record or its end is assigned again. For a partition that has records, a
        seek is scheduled.
        """
        now, unread = self._clock.monotonic(), list[Partition]()
        for partition in self._partitions.held.values():
            if partition.phase not in (Phase.ASSIGNED, Phase.OPEN) or partition.paused:
                continue
            if partition.rewind_to is not None or now - partition.last_seen < STALL_SECONDS:
                continue  # the seek to `rewind_to` is scheduled already, and goes further back
            partition.last_seen = now
            if partition.phase is Phase.ASSIGNED:
                unread.append(partition)
                continue
            marks = self._source.watermarks(partition.id, cached=True)
            owed = partition.ledger.next_owed  # `next_offset` may lie after a record that was given back
            if not partition.at_end or (marks is not None and marks[1] > owed):
                partition.fetch_again(owed)
        if unread:
            self._assign_again(unread)

    def flow(self, pause: Sequence[Partition], resume: Sequence[Partition]) -> None:
        """Pause and resume partitions.

        If an assignment is under way, the call may fail; the next round repeats the call.
        """
        if not pause and not resume:
            return
        if self._source.flow([p.id for p in pause], [(*p.id, p.rewind_to) for p in resume]):
            for partition in pause:
                partition.paused = True
            for partition in resume:
                partition.resume(self._clock.monotonic())

    def _assign_again(self, unread: list[Partition]) -> None:
        log.warning(
            "Kafka delivers nothing from assigned partitions; assigning them again.",
            action="partitions-unread",
            partitions=len(unread),
        )
        self._source.assign_again([partition.id for partition in unread])
        for partition in unread:
            partition.paused = True  # until the next resume, as after every assignment

    def _is_after_silence(self, partition: Partition, now: float) -> bool:
        return partition.phase is Phase.OPEN and now - partition.last_seen >= SILENCE_SECONDS

    def _take(self, partition: Partition, record: Record, now: float) -> bool:
        partition.last_seen, partition.at_end = now, False
        if partition.rewind_to is not None and record.offset >= partition.rewind_to:
            return False  # the partition is fetched again from `rewind_to` on
        offset, ledger, is_open = record.offset, partition.ledger, partition.phase is Phase.OPEN
        if is_open and offset > ledger.next_offset and not self._has_offset(partition, offset):
            return False
        partition.fetched_to = offset + 1
        if not is_open or not ledger.fits(offset):
            partition.fetch_again(offset)
            return False
        if offset > ledger.next_offset:
            self._watch.gap(partition, offset)
        partition.begun = True
        if not ledger.take(offset):
            return False
        self._partitions.load.take(partition, record)
        return True

    def _has_offset(self, partition: Partition, offset: int) -> bool:
        """Return whether the record's stated offset can be true, because the partition's end is higher or not known.

        A record with an offset past the end is left out. The record's real offset is `fetched_to`, or higher if
        retention removed that offset. The client would continue after the stated offset and miss other records, so the
        stage seeks to the offset after the real offset.
        """
        for cached in (True, False):  # compare with the end from the last fetch, then with the broker's end
            marks = self._source.watermarks(partition.id, cached=cached)
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
            "A record states an offset past its partition's end; leaving the record out.",
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
