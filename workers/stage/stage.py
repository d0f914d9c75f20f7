"""The stage: takes records, and commits their outputs and progress, one transaction at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue

from telemetry.clock import Clock, Deadline
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.stage.defects import Defects, LastResort
from workers.stage.dispatcher import Dispatcher, NothingCompletes
from workers.stage.fetching import Fetching
from workers.stage.partition import Partition, Phase
from workers.stage.partitions import Partitions
from workers.stage.progress import Progress
from workers.stage.record import Handler, Record
from workers.stage.runner import AT_A_TIME_SECONDS, PACED_AT_A_TIME_SECONDS, Handled, Runner, RunnerProxy
from workers.stage.settings import StageSettings
from workers.stage.settler import Settler, SettlerState
from workers.stage.sharing import Backpressure, Sharing, Unpaced
from workers.stage.source import PartitionId, Source
from workers.stage.topic_ids import Identities, TopicMadeAnew
from workers.stage.transactions import Transactions
from workers.stage.watch import Watch

IDLE_SECONDS = 0.02
"""The time for which an idle stage waits for a record before it checks for a stop."""
SETTLING_SECONDS = 0.01
"""The longest wait for a record while a transaction is under way. Rounds of a millisecond would take a tenth of a core
beside each commit, and the end of a commit cannot end the wait."""
FAREWELL_SECONDS = 5.0
"""The time for the last commit of a revoked partition, which states that the partition was given back cleanly."""

log = get_logger()


class Stage:
    """One thread owns Kafka, and one event loop runs the handler. Two queues connect this thread with the event loop.

    The stage runs the rounds and handles rebalances. The state has four parts, and each part knows only the parts
    before it: `held` (partitions and their load), `fetching`, `dispatching` (window and suspects), `transactions`
    (complete records). A process calls `run` and `stop`; a test calls the steps of a round one by one.
    """

    def __init__(
        self,
        settings: StageSettings,
        handler: Handler,
        source: Source,
        settler: Settler,
        clock: Clock,
        metrics: Metrics,
        pace: Backpressure | None = None,
        sharing: Sharing | None = None,
        last_resort: LastResort | None = None,
        identities: Identities | None = None,
    ) -> None:
        """Without `identities`, the stage knows topics by name, and does not notice a new topic of the same name."""
        self._settings = settings
        self._source = source
        self._settler = settler
        self._clock = clock
        limits, defects, completions = settings.limits, Defects(metrics), SimpleQueue[list[Handled]]()
        self.stopping: Deadline | None = None
        """The deadline of the drain, set by `stop`. None before `stop` is called."""
        self.error: Exception | None = None
        """The error that `run` raises after the stage has drained and left the group."""
        self.watch = Watch(source, settler, clock, metrics)
        pace = pace or Unpaced()
        at_a_time = PACED_AT_A_TIME_SECONDS if pace.paced else AT_A_TIME_SECONDS
        self.proxy = RunnerProxy(Runner(handler, completions, defects, sharing, last_resort, at_a_time))
        self.partitions = Partitions(limits.records, source, settler, self.watch, clock, metrics, identities)
        self.fetching = Fetching(self.partitions, source, self.watch, clock)
        self.dispatcher = Dispatcher(limits, self.partitions, self.proxy, defects, clock, metrics, pace, sharing)
        self.transactions = Transactions(
            settings.group_commit_seconds,
            self.partitions,
            self.dispatcher.isolation,
            completions,
            settler,
            clock,
            metrics,
            self.dispatcher.spent,
        )

    # -- on the event loop ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Join the group and work until `stop`, then drain. Raises the error that ended the Kafka thread."""
        loop = self.proxy.loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        name = f"kafka-{self._settings.name}"
        threading.Thread(target=self._thread, args=(loop, ended), name=name, daemon=True).start()
        await ended

    def stop(self) -> None:
        """Start the drain; `run` returns once the stage has drained. Any thread may call this, more than once."""
        self.stopping = self.stopping or Deadline.after(self._clock, self._settings.drain_seconds)

    # -- on the Kafka thread: rounds -----------------------------------------------------------------------------

    def _thread(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
        error: BaseException | None = None
        try:
            self.live()
            error = self.error
        except BaseException as raised:
            error = raised
        loop.call_soon_threadsafe(_end, ended, error)

    def live(self) -> None:
        """Join the group and work until `stop`; then drain, end the last transaction, and leave the group."""
        self._source.join(self)
        try:
            while self.stopping is None:
                self.round()
            self.drain()
        except Exception:
            self._break_off()
            raise
        self._settler.close()
        self._source.leave()

    def _break_off(self) -> None:
        """End after an error without committing: other members get the partitions and their records at once.

        Without this the open transaction would hold up readers until its timeout, and the group would wait for the
        member until the session timeout. Further errors would only hide the first one.
        """
        with suppress(Exception):
            self._drop(list(self.partitions.held.values()))
        with suppress(Exception):
            self._settler.close()
        with suppress(Exception):
            self._source.leave()

    def round(self) -> None:
        """Fetch, take, dispatch and settle records, then pause and resume partitions."""
        window = self.dispatcher.window
        window.look(self._clock.monotonic())
        if window.tight or self.dispatcher.is_deferring:
            self._clock.sleep(0.001)
        else:
            self.take(*self._source.consume(window.batch, self.patience()))
        self.dispatcher.defer_surplus()
        self.turn()
        self.regulate()
        self.watch.look(list(self.partitions.held.values()))

    def turn(self) -> None:
        """Collect, dispatch and settle without fetching. A drain calls this too, so that other partitions go on."""
        self.watch.beat()
        self._settler.listen()
        self.collect()
        self.settle(self.dispatch())

    def patience(self) -> float:
        """Return the seconds to wait for a record: 0 if a transaction can begin now."""
        pending, group_commit = self.transactions.pending, self.transactions.group_commit
        busy = self.partitions.load.running or self.dispatcher.window.queued
        if self._settler.state is SettlerState.SETTLING and not self.dispatcher.window.queued:
            return min(SETTLING_SECONDS, max(0.001, self.transactions.seconds_left))
        if self._settler.state is SettlerState.SETTLING or group_commit.made_way:
            return 0.001
        is_free = not (self._settler.resting or self.partitions.doubted)
        if pending and is_free and not group_commit.expects(self._clock.monotonic()):
            return 0.0
        return min(IDLE_SECONDS, max(0.001, group_commit.seconds)) if busy else IDLE_SECONDS

    def take(self, records: list[Record], ends: list[tuple[str, int, int]]) -> None:
        """Take delivered records and ends of partitions. `ends` holds (topic, partition, offset) tuples."""
        if not records and not ends:
            return
        try:
            found, found_ends = self.fetching.find(records, ends)
            self.partitions.look()
            opened = self.partitions.open({partition for partition, _ in (*found, *found_ends)})
        except TopicMadeAnew as anew:
            self._topic_made_anew(anew)
            return
        for partition in opened:
            self.dispatcher.opened(partition)
        for partition, record in self.fetching.take(found):
            self.dispatcher.accept(partition, record)
        for partition in self.fetching.reach(found_ends):
            self.dispatcher.caught_up(partition)

    def collect(self) -> None:
        """Collect the completions from the handler, and Kafka's answer about doubted topics."""
        self.dispatcher.died(self.transactions.collect())
        try:
            self.partitions.look()
        except TopicMadeAnew as anew:
            self._topic_made_anew(anew)

    def dispatch(self) -> int:
        """Hand over the records that may run now. Returns the number of these records."""
        try:
            return self.dispatcher.dispatch(self.transactions.handled)
        except NothingCompletes as error:
            self._end_with(error)
            return 0

    def settle(self, handed_over: int) -> None:
        """Make the next step of the transactions. `handed_over` is the return value of `dispatch`."""
        for partition, progress in self.transactions.step(handed_over):
            self._begin_anew(partition, progress)

    def regulate(self) -> None:
        """Give back records that are not due and exceed their bounds, and pause and resume partitions."""
        window = self.dispatcher.window
        for partition, behind in self.dispatcher.cut():
            self.partitions.give_back(partition, behind)
        self.fetching.wake_stalled()
        self.fetching.flow(*window.changes(self.partitions.held.values()))

    def drain(self) -> None:
        """Drain and release all partitions after `stop`.

        The time limit starts at the call of `stop`, not now, because a drain for a rebalance may have come in between.
        """
        assert self.stopping is not None, "stop() comes first"  # noqa: S101 - an invariant, not a check of input
        self._give_away(list(self.partitions.held.values()), self.stopping)

    def _topic_made_anew(self, anew: TopicMadeAnew) -> None:
        """Stop, and commit nothing more for the topic: its records now have other identities."""
        log.error(
            "A topic was deleted and created again; draining, then ending this process.",
            action="topic-replaced",
            topic=anew.topic,
        )
        self._drop([partition for partition in self.partitions.held.values() if partition.topic == anew.topic])
        self.partitions.doubted.discard(anew.topic)
        self._end_with(anew)

    def _end_with(self, error: Exception) -> None:
        """Stop, and make `run` raise this error, unless there was an earlier error."""
        self.error = self.error or error
        self.stop()

    # -- on the Kafka thread: membership, called by the source ---------------------------------------------------

    def assigned(self, partitions: Sequence[PartitionId]) -> None:
        """Hold the partitions. Each partition opens when its first record or end is delivered."""
        for topic, number in partitions:
            self.partitions.assign(topic, number, self.dispatcher.place(topic))
        held = len(self.partitions.held)
        log.info("Partitions assigned.", action="partitions-assigned", partitions=len(partitions), held=held)

    def revoked(self, partitions: Sequence[PartitionId]) -> None:
        """Drain dispatched records, give other records back untried, and commit that the partitions are released."""
        shorter, seconds = self._settings.revoke_drain_seconds, self._settings.drain_seconds
        deadline = Deadline.after(self._clock, seconds if shorter is None else min(shorter, seconds))
        self._give_away(self.partitions.of(partitions), deadline)

    def lost(self, partitions: Sequence[PartitionId]) -> None:
        """Drop the partitions and commit nothing, because another member has them already."""
        going = self.partitions.of(partitions)
        self._drop(going)
        log.warning("Partitions lost.", action="partitions-lost", partitions=len(going))

    def _give_away(self, going: list[Partition], deadline: Deadline) -> None:
        for partition in going:
            self._close(partition)
        self.transactions.end_lingering()
        while not deadline.passed and not all(p.ledger.idle for p in going if p.owned):
            self.turn()
            self._clock.sleep(0.001)
        going = [partition for partition in going if partition.owned]
        abandoned = sum(len(p.ledger.taken) for p in going)
        for partition in going:
            self._abandon(partition)
        farewell = Deadline.after(self._clock, FAREWELL_SECONDS)
        while not farewell.passed and any(p.open_committed or self._settler.carries(p) for p in going if p.owned):
            self.turn()
            self._clock.sleep(0.001)
        self._drop([partition for partition in going if partition.owned])
        log.info("Partitions revoked.", action="partitions-revoked", partitions=len(going), abandoned=abandoned)

    def _close(self, partition: Partition) -> None:
        """Dispatch no more records of this partition, and give back its waiting records."""
        self.partitions.give_back(partition, self.dispatcher.release(partition, draining=True))
        partition.close()

    def _abandon(self, partition: Partition) -> None:
        """Cancel a partition's running records after the drain's deadline, and leave them to the next owner."""
        self.proxy.cancel(partition)
        partition.abandon()
        self.transactions.forget_settled()

    def _begin_anew(self, partition: Partition, progress: Progress) -> None:
        """Go on from the committed progress: Kafka has lost confirmed progress, together with its outputs."""
        log.error(
            "Kafka has undone a confirmed commit; reading the partition again from the committed offset.",
            action="progress-undone",
            topic=partition.topic,
            partition=partition.number,
            confirmed=partition.confirmed.base,
            base=progress.base,
        )
        is_leaving = partition.phase is Phase.REVOKING
        self._drop([partition])
        if not is_leaving:
            place = self.dispatcher.place(partition.topic)
            self.partitions.assign(partition.topic, partition.number, place).replace(partition, progress.base)

    def _drop(self, partitions: list[Partition]) -> None:
        """Forget partitions that this process no longer owns, and all records of these partitions."""
        for partition in partitions:
            suspected = self.dispatcher.isolation.involves(partition)
            self.proxy.cancel(partition)
            self.dispatcher.release(partition)
            self.partitions.drop(partition, suspected=suspected)
        self.transactions.forget_settled()


def _end(ended: asyncio.Future[None], error: BaseException | None) -> None:
    if ended.done():
        return  # the caller of run() was cancelled, and no longer waits
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)
