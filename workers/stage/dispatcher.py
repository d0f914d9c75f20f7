"""The dispatcher: taken records wait in queues or as suspects, and go to the handler when the handler has room."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from schemas.operator_error import OperatorError
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from telemetry.throttle import LogThrottle
from workers.stage.defects import Defects
from workers.stage.due_queue import DueQueue
from workers.stage.isolation import Isolation
from workers.stage.partition import Partition
from workers.stage.partitions import Partitions
from workers.stage.record import Party, Record
from workers.stage.runner import RunnerProxy
from workers.stage.sharing import Backpressure, Place, Sharing
from workers.stage.window import Limits, RemoteShare, Window


class NothingCompletes(OperatorError):  # noqa: N818 - it names what happens
    """The process that runs the records died at several records in a row, and completed none."""

    def __init__(self) -> None:
        super().__init__(
            "the engine died each time at jobs that ran alone, and completed no job in between: the machine or its GPU "
            "seems to be at fault. No job was given up; other workers take the jobs over. Check the engine's log and "
            "the GPU's health before you start this worker again"
        )


SAY_SECONDS = 60.0
"""The shortest time between two lines about a topic.

Partitions are opened one by one, when their first records arrive, and would log a line each.
"""

log = get_logger()


class UncleanShutdowns:
    """Logs how many partitions a dead process left open.

    A topic gets one line a minute, because hundreds of its partitions may have been left open. Only the Kafka thread
    calls the methods.
    """

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


DUE_SHARE = 4
"""Records that are not due may take a DUE_SHARE-th of the window's bytes."""
OTHERS_SECONDS = 10.0
"""The longest time for which a suspect's last attempt waits for another record to complete, if no other record runs or
waits."""

CRASH_SECONDS = 1.0
"""The time after the last death of a record in which records that may wait for outside servers may die with it.

Such records are still fetching pages if they run on after this time, and hold up no other record."""

MOST_DEFERRED = 512
"""Cap on the records that are deferred together, because the event loop handles no records while it defers records."""


class Dispatcher:
    """Chooses queued records and suspects for the handler's room. Only the Kafka thread calls the methods."""

    def __init__(
        self,
        limits: Limits,
        partitions: Partitions,
        runner: RunnerProxy,
        defects: Defects,
        clock: Clock,
        metrics: Metrics,
        pace: Backpressure,
        sharing: Sharing | None,
    ) -> None:
        self._partitions = partitions
        self._runner = runner
        self._defects = defects
        self._clock = clock
        self._metrics = metrics
        self._pace = pace
        self._sharing = sharing
        self._casualties: list[tuple[Partition, Record]] = []
        """Records that died in a crash, kept while the crash may have killed more records."""
        self._died_at = 0.0
        """The monotonic time at which the last of the casualties was reported."""
        self._alone_since = 0.0
        """The monotonic time since which every record here has been a suspect that waits for its last attempt."""
        self._unclean = UncleanShutdowns(clock)
        self.isolation = Isolation()
        self.due = DueQueue(pace, limits.bytes // DUE_SHARE, defects, clock) if pace.paced and sharing is None else None
        """Records that are not due; None in a stage that is not paced or has a `Sharing`."""
        self.window = Window(limits, None if sharing is None else sharing.later_share, partitions.load, self.due)

    def place(self, topic: str) -> Place:
        """Return the place in which a topic's records wait."""
        return Place.FIRST if self._sharing is None else self._sharing.place(topic)

    def opened(self, partition: Partition) -> None:
        """Suspect the first records of a partition that its last owner did not release.

        Call this before accepting any record.
        """
        self.isolation.opened(partition)
        if partition.careful_records:
            self._unclean.note(partition)

    def accept(self, partition: Partition, record: Record) -> None:
        """Queue a record that was just taken: among the suspects, or in the window."""
        if partition.careful_records and self.due is not None and self.due.was_never_due(record):
            # A paced topic's records become due in order, so the last owner began neither this record nor any later
            # one.
            self.isolation.end_first_window(partition)
        if self._sharing is not None:
            try:
                self._sharing.assess(record)
            except Exception as error:
                self._defects.met("assess", record, error)
                record.party = None
        is_doubtful = partition.suspects or partition.careful_records
        if is_doubtful and self.isolation.suspect(partition, record):
            return
        if self.due is None or not self.due.keeps(partition, record):
            self.window.add(partition, record, record.party)

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

    def spent(self, handled: Iterable[tuple[Partition, Record]]) -> None:
        """Correct the costs of records' parties. Call this for records whose handler has returned."""
        if self._sharing is None:
            return
        more: defaultdict[tuple[Place, Party], float] = defaultdict(float)
        for partition, record in handled:
            if record.spent is not None:
                more[partition.place, record.party] += record.spent - record.cost
        for (place, party), cost in more.items():
            self.window.correct(place, party, cost)

    def caught_up(self, partition: Partition) -> None:
        """Suspect no further record of a partition whose end was reached, because the records after the end are new."""
        self.isolation.end_first_window(partition)

    def died(self, casualties: Sequence[tuple[Partition, Record]]) -> None:
        """Note records that were running when their engine died, so that `dispatch` suspects them."""
        if casualties:
            self._casualties += casualties
            self._died_at = self._clock.monotonic()

    def dispatch(self, waiting: int) -> int:
        """Hand the records that may run now to the event loop. Returns the number of these records.

        `waiting` is the number of handled records that wait to be settled. Raises NothingCompletes.
        """
        self._unclean.say()
        if self._casualties:
            if self._may_die_too():
                return 0  # judge all records of a crash together, later
            self._judge()
        batch: list[tuple[Partition, Record]] = []
        # The handler does not count dispatched records that have not begun, so the stage subtracts them here.
        room = min(self._free(waiting), self._pace.room() - self._runner.not_begun)
        if not self.isolation.idle:
            self._give_up_condemned()
            self._wait_for_others()
            batch += self._cohort(room)
        if not self.isolation.exclusive:
            batch += self._queued(room - len(batch))
        if batch:
            self._hand_over(batch)
        return len(batch)

    def release(self, partition: Partition, *, draining: bool = False) -> list[Record]:
        """Remove and return all waiting records of a partition, and forget the partition.

        With `draining`, its running suspects are not forgotten.
        """
        died = [record for owner, record in self._casualties if owner is partition]
        self._casualties = [entry for entry in self._casualties if entry[0] is not partition]
        early = [] if self.due is None else self.due.remove(partition)
        untried = self.isolation.forget(partition, draining=draining)
        return [*self.window.release(partition), *early, *untried, *died]

    def cut(self) -> list[tuple[Partition, list[Record]]]:
        """Remove and return records that are not due, and exceed their bounds."""
        return [] if self.due is None else self.due.cut()

    def _may_die_too(self) -> bool:
        """Return whether running records may be part of the last crash."""
        load = self._partitions.load
        is_recent = self._clock.monotonic() - self._died_at < CRASH_SECONDS
        return load.running > (0 if is_recent else load.outside.total())

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
        return records - self._partitions.load.running - max(0, waiting - records)

    def _queued(self, room: int) -> list[tuple[Partition, Record]]:
        """Remove and return up to `room` queued records. Tenants and partitions take turns."""
        if self.due:
            for partition, record in self.due.due(max(room, self.window.first.free)):
                self.window.add(partition, record, None)
        if room <= 0 or not self.window.queued:
            return []
        if self._sharing is None:
            return self.window.draw(room, _may_begin)
        return self.window.draw(room, RemoteShare(self.window, _may_begin).ready)

    def _hand_over(self, batch: list[tuple[Partition, Record]]) -> None:
        begin = self._partitions.load.begin
        for partition, record in batch:
            begin(partition, record)
            partition.bound.begun(record.offset)
        self._metrics.in_flight.inc(len(batch))
        self._runner.start(batch, self._clock.monotonic())

    def _cohort(self, room: int) -> list[tuple[Partition, Record]]:
        """Return the next cohort's members if they are committed as running, else an empty list.

        An `alone` cohort waits until no other record runs.
        """
        cohort = self.isolation.next_cohort(room)
        if cohort is None or not cohort.committed or (cohort.alone and self._partitions.load.running):
            return []
        cohort.dispatched = True
        say = log.info if cohort.narrow else log.debug  # a first window may log hundreds of cohorts
        say("Trying suspects.", action="cohort-dispatched", records=len(cohort.members), alone=cohort.alone)
        return list(cohort.members)

    def _wait_for_others(self) -> None:
        """Begin a suspect's last attempt if no other record has run or waited in the last OTHERS_SECONDS."""
        now = self._clock.monotonic()
        if not self.isolation.needs_others or self._partitions.load.running or self.window.queued:
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
            self._partitions.load.begin(partition, record)
            self._metrics.in_flight.inc()
            self._runner.give_up(partition, record, attempts, self._clock.monotonic())
        self.isolation.condemned = []


def _may_begin(partition: Partition, record: Record) -> bool:
    """Return whether the partition's commits allow that the record runs now."""
    return partition.dispatchable and partition.bound.allows(record)
