"""The stage: records in, outputs and progress out; many at once, finished in any order, one transaction at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from queue import Empty, SimpleQueue
from typing import Protocol

from confluent_kafka import KafkaException

from telemetry.clock import Clock, Deadline
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.stage.defects import Defects, LastResort
from workers.stage.group_commit import GroupCommit, Lingering
from workers.stage.intake import Committed, Intake, PartitionId
from workers.stage.isolation import Cohort, Isolation
from workers.stage.lookahead import Lookahead
from workers.stage.partition import Partition, Phase
from workers.stage.progress import Progress
from workers.stage.record import Handler, Record
from workers.stage.runner import Handled, Runner
from workers.stage.settle import Batch, Settler, SettlerState
from workers.stage.sharing import Party, Sharing
from workers.stage.topic_ids import Identities, TopicMadeAnew
from workers.stage.watch import Watch
from workers.stage.window import Limits, Window

MAX_BATCH_RECORDS = 5_000
MAX_BATCH_BYTES = 16 * 1024 * 1024
"""Of a transaction's outputs. Kafka aborts a transaction after five seconds, and 5,000 large results take longer."""
IDLE_SECONDS = 0.02
"""How long to wait for a record where nothing else can happen; a stop is noticed after that."""
SOON_SECONDS = 10.0
"""How soon a record has to be due for others to wait behind it here. A later one's room is better used otherwise."""
OVERDUE_SECONDS = 1.0
"""How long a record has to be due, and to have no room, for what is behind it to be waiting for room too."""
PACED_AT_ONCE = 16
"""How many records of paced partitions are handed over in a round, at most. What was put into a tier together is due
together, by the hundred: what comes meanwhile would wait until all of it is begun."""
PACED_SHARE = 0.2
"""Of the places that are free: what those records have, however many others wait."""
LOOK_AGAIN_SECONDS = 0.5
"""How often a record that is not due is looked at: clocks are set."""
OTHERS_SECONDS = 10.0
"""How long a suspect's last attempt waits for other records where there are none."""
GAP_SECONDS = 1.0
"""How long a gap alone may wait for a record to be committed with."""

log = get_logger()


class NothingCompletes(Exception):  # noqa: N818 - it names what happens
    """The engine, or whatever else runs records, died at one record after the other, and completed none."""

    def __init__(self) -> None:
        super().__init__(
            "the engine died each time at jobs that ran alone, and has completed none since: the fault seems to be the "
            "machine's or its GPU's. No job was given up; other workers go on with them. See the engine's log and the "
            "GPU's health before this worker starts again"
        )


class Backpressure(Protocol):
    """How a stage is held back by what is behind its handler. The defaults hold nothing back."""

    def room(self) -> int:
        """How many further records the handler has use for now. Called on the Kafka thread; must be cheap."""
        ...

    def due_ms(self, record: Record) -> int | None:
        """Unix milliseconds before which the record is not to be dispatched; None: at once.

        Not asked by a stage that shares its window: there records wait for nothing but their turn.
        """
        ...

    def paces(self, topic: str) -> bool:
        """Whether the topic's records have such a time."""
        ...


class Unpaced:
    """A handler that takes whatever the window allows."""

    def room(self) -> int:
        """No bound of its own."""
        return 1 << 30

    def due_ms(self, record: Record) -> int | None:
        """Everything is due."""
        return None

    def paces(self, topic: str) -> bool:
        """No topic's have."""
        return False


@dataclass(frozen=True, slots=True)
class StageSettings:
    """What a stage is told by its process."""

    name: str
    limits: Limits = field(default_factory=Limits)
    drain_seconds: float = 30.0
    """How long dispatched records are awaited when the process stops, or a partition is taken away."""
    revoke_drain_seconds: float | None = None
    """How long those of a partition that is taken away are, where that is to be shorter: nothing is fetched meanwhile,
    and the partitions that stay live on what is parked."""
    group_commit_seconds: float = 0.0
    """How long at the least a complete record may wait to be settled with others: more than nothing where nobody waits
    for what is settled."""


class Stage:
    """One thread owns Kafka, one event loop owns the work; two queues join them and nothing else is shared.

    `run` returns after `stop` has drained the stage, and raises what ended the Kafka thread.
    """

    def __init__(
        self,
        settings: StageSettings,
        handler: Handler,
        intake: Intake,
        settler: Settler,
        clock: Clock,
        metrics: Metrics,
        pace: Backpressure | None = None,
        sharing: Sharing | None = None,
        foresight: Lookahead | None = None,
        last_resort: LastResort | None = None,
        identities: Identities | None = None,
    ) -> None:
        """Without `identities`, topics are known by their names alone, and are never made anew."""
        self._settings = settings
        self._intake = intake
        self._settler = settler
        self._clock = clock
        self._metrics = metrics
        self._pace: Backpressure = pace or Unpaced()
        self._sharing = sharing
        self._lookahead = foresight
        self._identities = identities
        self._made_anew: TopicMadeAnew | None = None
        """The error that the stage ends with, once it is drained and has left the group."""
        self._completions: SimpleQueue[Handled] = SimpleQueue()
        self._defects = Defects(metrics)
        self._runner = Runner(handler, self._completions, self._defects, sharing, last_resort)
        self._window = Window(settings.limits, None if sharing is None else sharing.later_share)
        self._isolation = Isolation()
        self._partitions: dict[PartitionId, Partition] = {}
        self._left: dict[PartitionId, Partition] = {}
        """Partitions that this process had and has no more, if none of their records was suspected then."""
        self._pending: list[Handled] = []
        """Complete, and to be settled next."""
        self._lingering = Lingering()
        self._group_commit = GroupCommit(settings.group_commit_seconds)
        self._casualties: list[tuple[Partition, Record]] = []
        self._announced: Cohort | None = None
        self._alone_since = 0.0
        """Monotonic seconds since which there may be nothing but suspects before their last attempt."""
        self._sick: NothingCompletes | None = None
        self._settle_began = 0.0
        """Monotonic seconds."""
        self._generation = 0
        self._is_paced = False
        """Whether there ever was a paced partition."""
        self._owed = 0.0
        """Places that are paced records' due, and were not given to them yet."""
        self._more_is_due = False
        """Whether there may be paced records that are due and were not handed over in the last round."""
        self._dispatched = 0
        """Records that were handed to the runner, ever."""
        self._stopping: Deadline | None = None
        """Once it is to end: until when dispatched records are awaited."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self.watch = Watch(intake, settler, clock, metrics)

    # -- on the event loop ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Join the group and work until `stop`."""
        self._loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = self._loop.create_future()
        thread = threading.Thread(
            target=self._thread, args=(self._loop, ended), name=f"kafka-{self._settings.name}", daemon=True
        )
        thread.start()
        await ended

    def stop(self) -> None:
        """Drain and end; `run` returns when that is done. May be called from any thread and more than once."""
        self._stopping = self._stopping or Deadline.after(self._clock, self._settings.drain_seconds)

    # -- on the Kafka thread -------------------------------------------------------------------------------------

    def _thread(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
        error: BaseException | None = None
        try:
            self._intake.join(self)
            while self._stopping is None:
                self._round()
            # Since the stop, not since now: a drain for a rebalance may have been under way.
            self._give_away(list(self._partitions.values()), self._stopping)
            self._settler.close()
            self._intake.leave()
            if self._lookahead is not None:
                self._lookahead.close()
            error = self._made_anew or self._sick
        except BaseException as raised:
            error = raised
        loop.call_soon_threadsafe(_end, ended, error)

    def _round(self) -> None:
        self._window.look(self._clock.monotonic())
        if self._window.tight:
            self._clock.sleep(0.001)
        else:
            self._take(*self._intake.consume(self._window.batch, self._patience()))
        self._turn()
        if self._lookahead is not None:
            self._lookahead.look(self._window.first, self._partitions.values())
        self._regulate()
        self.watch.look(list(self._partitions.values()))

    def _turn(self) -> None:
        """The part of a round that goes on while a revoked partition is drained, to keep the others fed."""
        self.watch.beat()
        self._settler.listen()
        self._collect()
        self._transact(self._dispatch())

    def _patience(self) -> float:
        """Seconds to wait for a record: not at all where there is something to settle."""
        if self._settler.state is SettlerState.SETTLING or self._group_commit.made_way or self._more_is_due:
            return 0.001
        if self._pending and not self._settler.resting and not self._group_commit.expects(self._clock.monotonic()):
            return 0.0
        busy = self._window.running or self._window.parked
        return min(IDLE_SECONDS, max(0.001, self._group_commit.seconds)) if busy else IDLE_SECONDS

    # -- taking --------------------------------------------------------------------------------------------------

    def _take(self, records: list[Record], ends: list[tuple[str, int, int]]) -> None:
        if not records and not ends:
            return
        if self._has_other_records(records, ends):
            return
        self._open({(r.topic, r.partition) for r in records} | {(topic, number) for topic, number, _ in ends})
        now = self._clock.monotonic()
        for record in records:
            partition = self._partitions.get((record.topic, record.partition))
            if partition is not None:
                partition.last_seen = now
                partition.at_end = False
                self._take_one(partition, record)
        self._defer_surplus()
        for topic, number, offset in ends:
            partition = self._partitions.get((topic, number))
            if partition is None or partition.phase is not Phase.OPEN or partition.rewind_to is not None:
                continue  # what was dropped before this end is no gap: it is fetched again
            if partition.ledger.fits(offset):
                if offset > partition.ledger.next_offset:
                    self.watch.gap(partition, offset)
                partition.last_seen = now
                partition.at_end = True
                partition.careful_records = 0
                partition.ledger.reach(offset)

    def _take_one(self, partition: Partition, record: Record) -> None:
        if partition.rewind_to is not None and record.offset >= partition.rewind_to:
            return  # it is fetched again from there
        if partition.phase is not Phase.OPEN or not partition.ledger.fits(record.offset):
            partition.rewind_to = record.offset
            return
        if record.offset > partition.ledger.next_offset:
            self.watch.gap(partition, record.offset)
        partition.begun = True
        if not partition.ledger.take(record.offset):
            return
        self._account(partition, len(record.value))
        if partition.careful_records and self._was_never_due(record):
            partition.careful_records = 0  # its last owner cannot have begun it, nor what is behind it
        if not self._isolation.suspect(partition, record):
            self._window.park(partition, record, self._party_of(record))

    def _party_of(self, record: Record) -> Party:
        try:
            return None if self._sharing is None else self._sharing.party(record.headers)
        except Exception as error:
            self._defects.met("party", record, error)
            return None

    def _defer_surplus(self) -> None:
        surplus = self._window.surplus(self._partitions.values())
        if surplus:
            self._on_loop(self._runner.defer, surplus, self._clock.monotonic())

    def _open(self, ids: set[PartitionId]) -> None:
        """Read the progress of partitions of which something was delivered for the first time."""
        fresh = [p for p in map(self._partitions.get, ids) if p is not None and p.phase is Phase.ASSIGNED]
        if not fresh:
            return
        marks = self._marks({partition.topic for partition in fresh})
        committed = self._committed(fresh, 5.0) if marks is not None else None
        if committed is None or marks is None:
            return
        for partition in fresh:
            mark, progress = marks[partition.topic], committed[partition.id]
            if progress is not None and progress.is_of_another_topic(mark):
                log.error(
                    "A topic was made anew: its committed progress is the old topic's. The partition begins at 0.",
                    action="topic-made-anew",
                    topic=partition.topic,
                    partition=partition.number,
                    base=progress.base,
                )
                progress, partition.rewind_to = None, 0
            self._recognise(partition, progress)
            partition.open(progress, self._settings.limits.records, mark)
            self._isolation.opened(partition)
            if partition.careful_records:
                log.warning(
                    "A partition was left open: its last owner died, and its first records are tried with care.",
                    action="partition-left-open",
                    topic=partition.topic,
                    partition=partition.number,
                    base=partition.ledger.base,
                    suspects=len(partition.suspects),
                )
        log.info("Partitions opened.", action="partitions-opened", partitions=len(fresh))

    def _recognise(self, partition: Partition, committed: Progress | None) -> None:
        """Suspect nothing in a partition that comes back as this process left it: its last owner is alive.

        A pause that is longer than the group's session does that. Another owner would have found the partition open,
        and would have committed whom it suspects before any record could kill it.
        """
        before = self._left.pop(partition.id, None)
        if before is not None and committed is not None:
            partition.begins_anew |= committed in (before.confirmed, before.sent)

    def _marks(self, topics: set[str]) -> dict[str, bytes | None] | None:
        """The marks of these topics; None where Kafka does not tell, or where one was made anew and the stage ends."""
        if self._identities is None:
            return dict.fromkeys(topics)
        try:
            return {**self._identities.marks(topics, 5.0)}
        except KafkaException as error:
            self.watch.trouble("the identity of a topic cannot be asked for", error)
        except TopicMadeAnew as anew:
            log.error(
                "A topic was made anew; draining, then this process ends.", action="topic-replaced", topic=anew.topic
            )
            self._made_anew = anew
            self.stop()
        return None

    def _has_other_records(self, records: list[Record], ends: list[tuple[str, int, int]]) -> bool:
        """Whether these are of a topic that was made anew. For a moment the client reads it before the group knows.

        Kafka is asked where a partition goes back although nobody sought, and where its first record comes some time
        after it was opened.
        """
        doubtful = set()
        for topic, number, offset in ends:
            partition = self._partitions.get((topic, number))
            if partition is not None and offset < partition.position:
                doubtful.add(topic)
        for record in records:
            partition = self._partitions.get((record.topic, record.partition))
            if partition is not None:
                comes_late = partition.phase is Phase.OPEN and not partition.begun
                if comes_late or record.offset < partition.position:
                    doubtful.add(record.topic)
                partition.position = record.offset
        return bool(doubtful) and self._marks(doubtful) is None and self._made_anew is not None

    def _committed(self, partitions: list[Partition], seconds: float) -> Committed | None:
        """What is committed for these; None where it cannot be read, since something of ours may still be open."""
        try:
            return self._intake.committed([partition.id for partition in partitions], seconds)
        except KafkaException as error:
            self.watch.trouble("the committed progress cannot be read", error)
            self._settler.sweep_again()
            return None

    def _account(self, partition: Partition, size: int) -> None:
        partition.bytes += size
        self._window.bytes += size

    # -- dispatching ---------------------------------------------------------------------------------------------

    def _dispatch(self) -> int:
        """Hand over what may run now; how many records of it are of partitions that are not paced."""
        self._more_is_due = False
        if self._casualties:
            if self._window.running:
                return 0  # the death is still spreading; whatever runs may be to blame
            self._isolation.crashed(self._casualties)
            self._casualties = []
            if self._isolation.sick:
                self._end_as_sick()
                return 0
        batch: list[tuple[Partition, Record]] = []
        # What has not begun is nothing that the handler knows of, and room for it has been given out already.
        room = min(self._free(), self._pace.room() - (self._dispatched - self._runner.begun))
        if not self._isolation.idle:
            self._give_up_condemned()
            self._wait_for_others()
            batch += self._cohort(room)
        if not self._isolation.exclusive:
            batch += self._parked(room - len(batch))
        if not batch:
            return 0
        for partition, record in batch:
            partition.running += 1
            partition.horizon.begun(record.offset)
        self._window.running += len(batch)
        self._dispatched += len(batch)
        self._metrics.in_flight.inc(len(batch))
        self._on_loop(self._runner.start, batch, self._clock.monotonic())
        return sum(not partition.paced for partition, _ in batch)

    def _free(self) -> int:
        """How many further records the handler may have at once.

        Fewer where a window of complete ones waits to be settled already: while nothing can be settled the work in
        flight is kept, and nothing is begun whose outcome could only be held in memory and be lost with it.
        """
        records = self._window.limits.records
        return records - self._window.running - max(0, len(self._pending) - records)

    def _parked(self, room: int) -> list[tuple[Partition, Record]]:
        """Up to `room` parked records, as their parties and partitions take turns."""
        if not (self._window.parked or self._window.put_off):
            return []
        if self._sharing is not None:
            return self._window.draw(room, self._ready)
        drawn = self._drawn(room) if self._is_paced else self._window.draw(room, self._ready)
        self._look_at_fronts()
        return drawn

    def _drawn(self, room: int) -> list[tuple[Partition, Record]]:
        """A few paced records, which have a share of the places, and all others that there is room for.

        As many of them as of others where the window is full: then none of these comes, and all wait for it to empty.
        """
        if self._window.first.full or self._window.tight:
            return self._window.draw(room, self._ready)
        self._owed = min(PACED_AT_ONCE, self._owed + max(0, room) * PACED_SHARE)
        paced = self._window.draw(min(room, int(self._owed)), self._ready_if_paced)
        self._owed -= len(paced)
        others = self._window.draw(room - len(paced), self._ready_if_not_paced)
        left = min(PACED_AT_ONCE, room - len(others)) - len(paced)
        paced += self._window.draw(left, self._ready_if_paced)
        self._more_is_due = len(paced) == PACED_AT_ONCE
        return others + paced

    def _ready(self, partition: Partition, records: Sequence[Record], most: int) -> int:
        """How many of the first `most` may run now; those of a stage that shares wait for nothing but their turn."""
        if not partition.dispatchable:
            return 0
        if self._sharing is not None:
            return partition.horizon.allowed(records, most)
        if self._clock.monotonic() < partition.look_again:
            return 0
        due = sum(1 for _ in takewhile(self._is_due, islice(records, most)))
        return partition.horizon.allowed(records, due)

    def _ready_if_paced(self, partition: Partition, records: Sequence[Record], most: int) -> int:
        return self._ready(partition, records, most) if partition.paced else 0

    def _ready_if_not_paced(self, partition: Partition, records: Sequence[Record], most: int) -> int:
        return 0 if partition.paced else self._ready(partition, records, most)

    def _is_due(self, record: Record) -> bool:
        """Whether its pace lets a record run now."""
        return self._seconds_left(record) <= 0

    def _seconds_left(self, record: Record) -> float:
        """How long its pace holds a record back; no more than nothing where it is due."""
        try:
            due_ms = self._pace.due_ms(record)
        except Exception as error:
            self._defects.met("due_ms", record, error)
            due_ms = None
        return 0.0 if due_ms is None else due_ms / 1000 - self._clock.time()

    def _was_never_due(self, record: Record) -> bool:
        """Not where its stamp is from the future: then each owner counts its wait from when it sees it."""
        return not self._is_due(record) and record.timestamp_ms <= self._clock.time() * 1000

    def _look_at_fronts(self) -> None:
        """Put off the records of partitions whose first one is not due: they take nobody's room."""
        now = self._clock.monotonic()
        for partition in self._partitions.values():
            if not (partition.parked and partition.dispatchable and now >= partition.look_again):
                continue
            left = self._seconds_left(self._window.next_of(partition))
            if left > 0:
                self._window.put_off_until_due(partition, soon=left <= SOON_SECONDS)
                partition.look_again = now + min(left, LOOK_AGAIN_SECONDS)
            elif left < -OVERDUE_SECONDS:
                self._window.bring_back(partition)

    def _give_back(self, partition: Partition, released: list[Record]) -> None:
        partition.give_back(released)
        self._account(partition, -sum(len(record.value) for record in released))

    def _cohort(self, room: int) -> list[tuple[Partition, Record]]:
        """The next cohort, once its suspicion is committed and, where it is to run alone, nothing else runs."""
        cohort = self._isolation.next_cohort(room)
        if cohort is None or not cohort.committed or (cohort.alone and self._window.running):
            return []
        cohort.dispatched = True
        say = log.info if cohort.narrow else log.debug  # of a first window there are hundreds
        say("Suspects are tried.", action="cohort-dispatched", records=len(cohort.members), alone=cohort.alone)
        return list(cohort.members)

    def _wait_for_others(self) -> None:
        """Try a suspect for the last time although no other record completes, once none has come for a while."""
        now = self._clock.monotonic()
        if not self._isolation.needs_others or self._window.running or self._window.parked:
            self._alone_since = now
        elif now - self._alone_since >= OTHERS_SECONDS:
            self._alone_since = now
            log.warning(
                "A record killed its worker twice, and no other one has completed since; it is tried again.",
                action="suspect-tried-without-others",
            )
            self._isolation.try_anyway()

    def _end_as_sick(self) -> None:
        """Give everything back, so that other workers do it, and end with NothingCompletes."""
        self._sick = NothingCompletes()
        log.critical(
            "Records killed their worker while they ran alone, and none completed; ending the process, giving up none.",
            action="nothing-completes",
        )
        self.stop()

    def _give_up_condemned(self) -> None:
        for partition, record, attempts in self._isolation.condemned:
            log.error(
                "A record killed its worker each time it ran alone; it is given up.",
                action="record-quarantined",
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                attempts=attempts,
            )
            self._metrics.quarantined.inc()
            partition.running += 1
            self._window.running += 1
            self._metrics.in_flight.inc()
            self._on_loop(self._runner.give_up, partition, record, attempts, self._clock.monotonic())
        self._isolation.condemned = []

    def _on_loop(self, call: Callable[..., None], *args: object) -> None:
        assert self._loop is not None, "run() comes first"  # noqa: S101 - an invariant, not a check of input
        self._loop.call_soon_threadsafe(call, *args)

    # -- settling ------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        now, ended, healthy = self._clock.monotonic(), 0, False
        while True:
            try:
                completion = self._completions.get_nowait()
            except Empty:
                break
            partition = completion.partition
            if not partition.owned:
                continue  # late work of an assignment that has ended
            if not completion.deferred:
                ended += 1
                partition.running -= 1
            if completion.outputs is not None and not completion.deferred and completion.record.shows_health:
                healthy = True
            if completion.outputs is None:
                self._casualties.append((partition, completion.record))
            elif completion.may_linger and self._has_time(completion):
                self._lingering.add(completion, now)
            else:
                self._complete(completion, now)
        if healthy:
            self._isolation.completed()
        if ended:
            self._window.running -= ended
            self._metrics.in_flight.dec(ended)
        for completion in self._lingering.over(now):
            self._complete(completion, now)

    def _has_time(self, completion: Handled) -> bool:
        """Whether nobody waits for it to be settled: others do for the place of a suspect, and for a drain."""
        partition = completion.partition
        return partition.phase is Phase.OPEN and completion.record.offset not in partition.suspects

    def _complete(self, completion: Handled, now: float) -> None:
        """It is settled with the next transaction."""
        self._pending.append(completion)
        self._group_commit.came(now - completion.dispatched_at, now)

    def _transact(self, handed_over: int) -> None:
        """Look after the transaction under way. Where there is none, begin one, or make one bounded step of repair.

        `handed_over`: records that were dispatched in this round, and are not paced.
        """
        if self._settler.state is SettlerState.SETTLING:
            self._land()
        if self._settler.resting or self._settler.state is SettlerState.SETTLING:
            return
        if self._settler.state is SettlerState.READY:
            if self._partitions and not self._settler.offsets_swept:
                self._settler.sweep_offsets()
                return
            if self._group_commit.expects(self._clock.monotonic()) or self._group_commit.makes_way(handed_over):
                return
            batch = self._compose()
            if batch.offsets:
                self._group_commit.left()
                self._settle_began = self._clock.monotonic()
                self._settler.settle(batch)
                for partition, progress in batch.progress.items():
                    partition.sent = progress
        elif self._settler.state is SettlerState.REREADING:
            self._reread()
        elif (late := self._settler.repair(list(self._partitions.values()))) is not None:
            self._apply(late)

    def _land(self) -> None:
        batch = self._settler.settled()
        if batch is not None:
            self._metrics.job_seconds.labels("settle").observe(self._clock.monotonic() - self._settle_began)
            self._apply(batch)

    def _compose(self) -> Batch:
        """Everything that is complete, and the partitions that have something to say of themselves alone."""
        batch = Batch()
        for completion in self._pending[: self._batch_length()]:
            batch.offsets[completion.partition].append(completion.record.offset)
            batch.outputs += completion.outputs or ()
        self._announced = self._isolation.announced
        announced = {partition for partition, _ in self._announced.members} if self._announced else set()
        for partition in self._partitions.values():
            if partition in announced or self._has_news(partition):
                batch.offsets[partition]  # with no record of its own
        batch.farewells = {partition for partition in batch.offsets if partition.phase is Phase.REVOKING}
        return batch

    def _batch_length(self) -> int:
        """How many pending completions the next transaction carries: one at least, and as many as its bounds allow.

        Each failure halves both bounds: a transaction that is too large for this network would be too large for ever.
        """
        most, room = (bound >> self._settler.failures for bound in (MAX_BATCH_RECORDS, MAX_BATCH_BYTES))
        for length, completion in enumerate(islice(self._pending, most), 1):
            room -= completion.output_bytes
            if room <= 0:
                return length
        return most

    def _has_news(self, partition: Partition) -> bool:
        """Whether a partition's progress is to be committed although none of its records is complete."""
        if partition.phase is Phase.OPEN and not partition.open_committed and not partition.ledger.idle:
            return True
        if partition.phase is Phase.OPEN and partition.horizon.held_back:
            return True
        if partition.phase is Phase.REVOKING:
            return partition.open_committed and partition.ledger.idle
        if not partition.ledger.gaps_unsettled or partition.phase is not Phase.OPEN:
            return False
        now = self._clock.monotonic()
        if partition.gap_since is None:
            partition.gap_since = now
        return now - partition.gap_since >= GAP_SECONDS

    def _apply(self, batch: Batch) -> None:
        """The commit has returned: now the ledgers change."""
        for partition, offsets in batch.offsets.items():
            partition.settle(offsets, batch.progress[partition])
            partition.open_committed = partition not in batch.farewells
        if self._announced is not None:
            self._announced.committed = True
        self._metrics.settled_records.inc(sum(map(len, batch.offsets.values())))
        self._forget_settled()

    def _reread(self) -> None:
        """Find out what the old producer's last transaction did, and drop what it already contains."""
        owned = [p for p in self._partitions.values() if p.phase in (Phase.OPEN, Phase.REVOKING)]
        committed = self._committed(owned, 2.0)
        if committed is None:
            return
        for partition in owned:
            progress = committed[partition.id] or Progress(0)
            if progress.is_of_another_topic(partition.topic_mark):
                progress = Progress(0)
            if progress.includes(partition.confirmed):
                partition.adopt(progress)
            else:
                self._begin_anew(partition, progress)
        self._forget_settled()
        self._settler.reread()

    def _begin_anew(self, partition: Partition, progress: Progress) -> None:
        """What Kafka had confirmed is not there, and nor are its outputs: go on from what is."""
        log.error(
            "Kafka has undone what it had confirmed; the partition begins anew.",
            action="progress-undone",
            topic=partition.topic,
            partition=partition.number,
            confirmed=partition.confirmed.base,
            base=progress.base,
        )
        leaving = partition.phase is Phase.REVOKING
        self._drop([partition])
        if not leaving:
            self._generation += 1
            anew = self._assign(partition.topic, partition.number)
            anew.begins_anew, anew.paused, anew.rewind_to = True, partition.paused, progress.base

    def _forget_settled(self) -> None:
        """Drop completions of which nothing is owed any more."""
        self._pending = self._still_owed(self._pending)
        self._lingering.completions = self._still_owed(self._lingering.completions)
        if not self._pending:
            self._group_commit.left()

    def _still_owed(self, completions: list[Handled]) -> list[Handled]:
        """Those that are still to be settled; the others are done with."""
        kept = []
        for completion in completions:
            partition, record = completion.partition, completion.record
            if not partition.owned:
                continue
            if partition.ledger.is_taken(record.offset):
                kept.append(completion)
                continue
            self._account(partition, -len(record.value))
            self._isolation.settled(partition, record.offset)
        return kept

    # -- flow ----------------------------------------------------------------------------------------------------

    def _regulate(self) -> None:
        """Pause and resume partitions. What is not possible while an assignment is being made is tried next round."""
        for partition, behind in self._window.cut():
            self._give_back(partition, behind)
        self.watch.seek_stalled(self._partitions.values())
        pause, resume = self._window.changes(self._partitions.values())
        if not pause and not resume:
            return
        if self._intake.flow([p.id for p in pause], [(*p.id, p.rewind_to) for p in resume]):
            for partition in pause:
                partition.paused = True
            for partition in resume:
                partition.position = partition.position if partition.rewind_to is None else 0
                partition.paused, partition.rewind_to = False, None
                partition.last_seen = self._clock.monotonic()  # it could give nothing while it was paused

    # -- membership, called by the intake on the Kafka thread ----------------------------------------------------

    def assigned(self, partitions: Sequence[PartitionId]) -> None:
        """Note the partitions; their ledgers open when something of them is delivered."""
        self._generation += 1
        for topic, number in partitions:
            self._assign(topic, number)
        held = len(self._partitions)
        log.info("Partitions assigned.", action="partitions-assigned", partitions=len(partitions), held=held)

    def _assign(self, topic: str, number: int) -> Partition:
        later = self._sharing is not None and self._sharing.is_later(topic)
        paced = self._pace.paces(topic)
        self._is_paced |= paced
        partition = Partition(topic, number, self._generation, self._clock.monotonic(), later=later, paced=paced)
        self._partitions[partition.id] = partition
        return partition

    def revoked(self, partitions: Sequence[PartitionId]) -> None:
        """Drain what is dispatched, hand the rest over untried, and say that we left cleanly."""
        going = [self._partitions[key] for key in partitions if key in self._partitions]
        shorter, seconds = self._settings.revoke_drain_seconds, self._settings.drain_seconds
        self._give_away(going, Deadline.after(self._clock, seconds if shorter is None else min(shorter, seconds)))

    def _give_away(self, going: list[Partition], deadline: Deadline) -> None:
        for partition in going:
            self._close(partition)
        for completion in self._lingering.end():
            self._complete(completion, self._clock.monotonic())
        while not deadline.passed and not all(p.ledger.idle for p in going if p.owned):
            self._turn()
            self._clock.sleep(0.001)
        going = [partition for partition in going if partition.owned]
        abandoned = sum(len(p.ledger.taken) for p in going)
        for partition in going:
            self._abandon(partition)
        farewell = Deadline.after(self._clock, 5.0)
        while not farewell.passed and any(p.open_committed or self._settler.carries(p) for p in going if p.owned):
            self._turn()
            self._clock.sleep(0.001)
        self._drop([partition for partition in going if partition.owned])
        log.info("Partitions revoked.", action="partitions-revoked", partitions=len(going), abandoned=abandoned)

    def lost(self, partitions: Sequence[PartitionId]) -> None:
        """Another member has them already: drop everything, commit nothing."""
        going = [self._partitions[key] for key in partitions if key in self._partitions]
        self._drop(going)
        log.warning("Partitions lost.", action="partitions-lost", partitions=len(going))

    def _close(self, partition: Partition) -> None:
        """Nothing more of this partition is dispatched."""
        self._give_back(partition, self._window.release(partition))
        for record in self._isolation.forget(partition):
            partition.ledger.drop(record.offset)
            self._account(partition, -len(record.value))
        for casualty in [entry for entry in self._casualties if entry[0] is partition]:
            self._casualties.remove(casualty)
            partition.ledger.drop(casualty[1].offset)
            self._account(partition, -len(casualty[1].value))
        partition.phase = Phase.REVOKING

    def _abandon(self, partition: Partition) -> None:
        """Its time is up: what still runs is cancelled, and stays undone for the next owner."""
        self._on_loop(self._runner.cancel, partition)
        for offset in partition.ledger.taken:
            partition.ledger.drop(offset)
        self._forget_settled()

    def _drop(self, partitions: list[Partition]) -> None:
        for partition in partitions:
            if not self._isolation.involves(partition):
                self._left[partition.id] = partition
            self._on_loop(self._runner.cancel, partition)
            self._isolation.forget(partition)
            self._casualties = [entry for entry in self._casualties if entry[0] is not partition]
            self._window.release(partition)
            self._window.running -= partition.running
            self._metrics.in_flight.dec(partition.running)
            self._window.bytes -= partition.bytes
            partition.phase = Phase.GONE
            self.watch.gone(partition)
            del self._partitions[partition.id]
        self._forget_settled()


def _end(ended: asyncio.Future[None], error: BaseException | None) -> None:
    if ended.done():
        return  # the caller of run() was cancelled
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)
