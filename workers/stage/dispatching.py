"""Dispatching: taken records wait in the window or as suspects, and go to the handler when the handler has room."""

from __future__ import annotations

from collections.abc import Sequence

from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.stage.backpressure import Backpressure
from workers.stage.defects import Defects
from workers.stage.errors import NothingCompletes
from workers.stage.held import Held
from workers.stage.isolation import Isolation
from workers.stage.left_open import LeftOpen
from workers.stage.outside import OutsideTurns
from workers.stage.pacing import Pacing
from workers.stage.partition import Partition
from workers.stage.record import Record
from workers.stage.runner_proxy import RunnerProxy
from workers.stage.sharing import Party, Place, Sharing
from workers.stage.window import Limits, Window

OTHERS_SECONDS = 10.0
"""The longest time for which a suspect's last attempt waits for another record to complete, if no other record runs or
waits."""

MOST_DEFERRED = 512
"""Cap on the records that are deferred together, because the event loop handles no records while it defers records."""

log = get_logger()


class Dispatching:
    """Chooses parked records and suspects for the handler's room. Only the Kafka thread calls the methods."""

    def __init__(
        self,
        limits: Limits,
        held: Held,
        runner: RunnerProxy,
        defects: Defects,
        clock: Clock,
        metrics: Metrics,
        pace: Backpressure,
        sharing: Sharing | None,
    ) -> None:
        self._held = held
        self._runner = runner
        self._defects = defects
        self._clock = clock
        self._metrics = metrics
        self._pace = pace
        self._sharing = sharing
        self._casualties: list[tuple[Partition, Record]] = []
        """Records that died in a crash, kept until no record is running, because the crash may have killed more
        records."""
        self._alone_since = 0.0
        """The monotonic time since which every record here has been a suspect that waits for its last attempt."""
        self._left_open = LeftOpen(clock)
        self.isolation = Isolation()
        self.window = Window(limits, None if sharing is None else sharing.later_share, held.load)
        self.pacing = Pacing(pace, self.window, held, defects, clock)

    def place(self, topic: str) -> Place:
        """Return the place in which a topic's records wait."""
        return Place.FIRST if self._sharing is None else self._sharing.place(topic)

    def opened(self, partition: Partition) -> None:
        """Suspect the first records of a partition that its last owner did not release.

        Call this before accepting any record.
        """
        self.isolation.opened(partition)
        if partition.careful_records:
            self._left_open.note(partition)

    def accept(self, partition: Partition, record: Record) -> None:
        """Queue a record that was just taken: among the suspects, or in the window."""
        if partition.careful_records and self.pacing.was_never_due(record):
            # A paced topic's records become due in order, so the last owner began neither this record nor any later
            # one.
            self.isolation.end_first_window(partition)
        self._assess(record)
        if not self.isolation.suspect(partition, record):
            self.window.park(partition, record, self._party_of(record))

    def defer_surplus(self) -> None:
        """Pass records for the later place to `Sharing.defer`, unless earlier records are still being deferred."""
        surplus = [] if self.is_deferring else self.window.surplus(MOST_DEFERRED)
        if surplus:
            self._runner.defer(surplus, self._clock.monotonic())

    @property
    def is_deferring(self) -> bool:
        """True until the event loop has deferred the last surplus.

        Until then, further surplus records would only wait.
        """
        return self._runner.is_deferring

    def spent(self, partition: Partition, record: Record) -> None:
        """Correct the cost of a record's party. Call this when the handler has returned, and has set the real cost."""
        if self._sharing is not None and record.spent is not None:
            self.window.correct(partition, self._party_of(record), record.spent - record.cost)

    def caught_up(self, partition: Partition) -> None:
        """Suspect no further record of a partition whose end was reached, because the records after the end are new."""
        self.isolation.end_first_window(partition)

    def died(self, casualties: Sequence[tuple[Partition, Record]]) -> None:
        """Note records that were running when their engine died, so that `dispatch` suspects them."""
        self._casualties += casualties

    def dispatch(self, waiting: int) -> int:
        """Hand the records that may run now to the event loop. Returns the number of these records.

        `waiting` is the number of handled records that wait to be settled. Raises NothingCompletes.
        """
        self._left_open.say()
        if self._casualties:
            if self._held.load.running:
                return 0  # running records may be part of the same crash, so judge all of them together later
            self._judge()
        batch: list[tuple[Partition, Record]] = []
        # The handler does not count dispatched records that have not begun, so the stage subtracts them here.
        room = min(self._free(waiting), self._pace.room() - self._runner.not_begun)
        if not self.isolation.idle:
            self._give_up_condemned()
            self._wait_for_others()
            batch += self._cohort(room)
        if not self.isolation.exclusive:
            batch += self._parked(room - len(batch))
        if batch:
            self._hand_over(batch)
        return len(batch)

    def release(self, partition: Partition) -> list[Record]:
        """Remove and return all waiting records of a partition, and forget the partition."""
        died = [record for owner, record in self._casualties if owner is partition]
        self._casualties = [entry for entry in self._casualties if entry[0] is not partition]
        return [*self.window.release(partition), *self.isolation.forget(partition), *died]

    def _assess(self, record: Record) -> None:
        try:
            if self._sharing is not None:
                record.cost, record.urgency = self._sharing.cost(record), self._sharing.urgency(record)
                record.outside = self._sharing.party(record.headers) if self._sharing.may_wait(record) else None
        except Exception as error:
            self._defects.met("cost", record, error)

    def _party_of(self, record: Record) -> Party:
        try:
            return None if self._sharing is None else self._sharing.party(record.headers)
        except Exception as error:
            self._defects.met("party", record, error)
            return None

    def _judge(self) -> None:
        casualties, self._casualties = self._casualties, []
        self.isolation.crashed(casualties)
        if self.isolation.sick:
            log.critical(
                "Records killed their worker while they ran alone, and none completed; ending the process and giving "
                "up no record.",
                action="nothing-completes",
            )
            raise NothingCompletes

    def _free(self, waiting: int) -> int:
        """Return how many further records the handler may have at once.

        If more handled records wait to be settled than the window has places, each record above that number takes a
        place. So while transactions fail, the stage soon stops beginning records: their outputs would exist only in
        memory, and would be lost with the process.
        """
        records = self.window.limits.records
        return records - self._held.load.running - max(0, waiting - records)

    def _parked(self, room: int) -> list[tuple[Partition, Record]]:
        """Remove and return up to `room` parked records. Parties and partitions take turns."""
        if not (self.window.parked or self.window.put_off):
            return []
        if self._sharing is None:
            return self.pacing.draw(room)
        return self.window.draw(room, OutsideTurns(self.window, _may_begin).ready)

    def _hand_over(self, batch: list[tuple[Partition, Record]]) -> None:
        for partition, record in batch:
            self._held.load.begin(partition, record)
            partition.horizon.begun(record.offset)
        self._metrics.in_flight.inc(len(batch))
        self._runner.start(batch, self._clock.monotonic())

    def _cohort(self, room: int) -> list[tuple[Partition, Record]]:
        """Return the next cohort's members if they are committed as running, else an empty list.

        An `alone` cohort waits until no other record runs.
        """
        cohort = self.isolation.next_cohort(room)
        if cohort is None or not cohort.committed or (cohort.alone and self._held.load.running):
            return []
        cohort.dispatched = True
        say = log.info if cohort.narrow else log.debug  # a first window may log hundreds of cohorts
        say("Trying suspects.", action="cohort-dispatched", records=len(cohort.members), alone=cohort.alone)
        return list(cohort.members)

    def _wait_for_others(self) -> None:
        """Begin a suspect's last attempt if no other record has run or waited in the last OTHERS_SECONDS."""
        now = self._clock.monotonic()
        if not self.isolation.needs_others or self._held.load.running or self.window.parked:
            self._alone_since = now
        elif now - self._alone_since >= OTHERS_SECONDS:
            self._alone_since = now
            log.warning(
                "A record killed its worker twice, and no other record has completed since; trying it again.",
                action="suspect-tried-without-others",
            )
            self.isolation.try_anyway()

    def _give_up_condemned(self) -> None:
        for partition, record, attempts in self.isolation.condemned:
            log.error(
                "A record killed its worker each time it ran alone; giving the record up.",
                action="record-quarantined",
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                attempts=attempts,
            )
            self._metrics.quarantined.inc()
            self._held.load.begin(partition, record)
            self._metrics.in_flight.inc()
            self._runner.give_up(partition, record, attempts, self._clock.monotonic())
        self.isolation.condemned = []


def _may_begin(partition: Partition, records: Sequence[Record], most: int) -> int:
    """Return how many of the first `most` records may run now. Records of a stage with a `Sharing` have no due time."""
    return partition.horizon.allowed(records, most) if partition.dispatchable else 0
