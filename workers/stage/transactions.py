"""Complete records, from the handler's return until their outputs and their progress are committed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from queue import Empty, SimpleQueue

from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.stage.batch import Batch
from workers.stage.group_commit import GroupCommit, Lingering
from workers.stage.held import Held
from workers.stage.isolation import Cohort, Isolation
from workers.stage.partition import Partition, Phase
from workers.stage.progress import Progress
from workers.stage.record import Record
from workers.stage.runner import Handled
from workers.stage.settle import Settler
from workers.stage.settle_spans import trace_settled
from workers.stage.settler_state import SettlerState

MAX_BATCH_RECORDS = 5_000
MAX_BATCH_BYTES = 16 * 1024 * 1024
"""Cap on the output bytes of a transaction.

Kafka aborts a transaction after five seconds; 5,000 large results take longer.
"""
REREAD_SECONDS = 2.0

Undone = list[tuple[Partition, Progress]]
"""Partitions whose confirmed commit Kafka has undone, each with the progress that is committed now."""

log = get_logger()


class Transactions:
    """Commits complete records in transactions, one at a time. Only the Kafka thread calls the methods."""

    def __init__(
        self,
        group_commit_seconds: float,
        held: Held,
        isolation: Isolation,
        completions: SimpleQueue[Handled],
        settler: Settler,
        clock: Clock,
        metrics: Metrics,
        on_end: Callable[[Partition, Record], None],
    ) -> None:
        """`on_end` is called for each record whose handler has returned."""
        self._held = held
        self._on_end = on_end
        self._isolation = isolation
        self._settler = settler
        self._clock = clock
        self._metrics = metrics
        self._lingering = Lingering()
        self._announced: Cohort | None = None
        """The cohort whose members the last batch commits as running."""
        self._settle_began = 0.0
        """The monotonic time at which the transaction under way began."""
        self.completions = completions
        """The queue into which the event loop puts completions."""
        self.pending: list[Handled] = []
        """Completions to settle next."""
        self.group_commit = GroupCommit(group_commit_seconds)

    @property
    def handled(self) -> int:
        """The number of records that the handler has handled, not deferred, and that wait to be settled."""
        return sum([not completion.deferred for completion in self.pending])

    def collect(self) -> list[tuple[Partition, Record]]:
        """Collect completions from the event loop. Returns the records whose engine died with them."""
        now, ended, healthy = self._clock.monotonic(), 0, False
        died: list[tuple[Partition, Record]] = []
        while True:
            try:
                completion = self.completions.get_nowait()
            except Empty:
                break
            partition = completion.partition
            if not partition.owned:
                continue  # a late completion of an assignment that has ended
            if not completion.deferred:
                ended += 1
                self._held.load.end(partition, completion.record)
                self._on_end(partition, completion.record)
            if completion.outputs is not None and not completion.deferred and completion.record.shows_health:
                healthy = True
            if completion.outputs is None:
                died.append((partition, completion.record))
            elif completion.may_linger and _has_time(completion):
                self._lingering.add(completion, now)
            else:
                self.complete(completion, now)
        if healthy:
            self._isolation.completed()
        if ended:
            self._metrics.in_flight.dec(ended)
        for completion in self._lingering.over(now):
            self.complete(completion, now)
        return died

    def complete(self, completion: Handled, now: float) -> None:
        """Add a completion to those that the next transaction settles. `now`: monotonic seconds."""
        self.pending.append(completion)
        self.group_commit.came(now - completion.dispatched_at, now)

    def end_lingering(self) -> None:
        """Settle lingering completions with the next transaction instead of later."""
        for completion in self._lingering.end():
            self.complete(completion, self._clock.monotonic())

    def step(self, handed_over: int) -> Undone:
        """Finish the transaction under way, begin a new transaction, or make one bounded step of repair.

        `handed_over` is the number of records dispatched in this round. Returns partitions that the caller must
        start again.
        """
        if self._settler.state is SettlerState.SETTLING:
            self._land()
        if self._settler.resting or self._settler.state is SettlerState.SETTLING:
            return []
        if self._settler.state is SettlerState.READY:
            self._begin(handed_over)
        elif self._settler.state is SettlerState.REREADING:
            return self._reread()
        elif (late := self._settler.repair(list(self._held.partitions.values()))) is not None:
            self.apply(late)
        return []

    def compose(self) -> Batch:
        """Return a batch of complete records. Partitions that need a commit without a record are included."""
        batch = Batch()
        for completion in self.pending[: self._batch_length()]:
            batch.offsets[completion.partition].append(completion.record.offset)
            batch.outputs += completion.outputs or ()
        self._announced, now = self._isolation.announced, self._clock.monotonic()
        announced = {partition for partition, _ in self._announced.members} if self._announced else set()
        for partition in self._held.partitions.values():
            if partition in announced or partition.has_news(now):
                batch.offsets[partition]  # adds an empty list if the partition has no complete record
        return batch

    def apply(self, batch: Batch) -> None:
        """Note in the ledgers that the batch is committed."""
        for partition, offsets in batch.offsets.items():
            partition.settle(offsets, batch.progress[partition])
        if self._announced is not None:
            self._announced.committed = True
        self._metrics.settled_records.inc(sum(map(len, batch.offsets.values())))
        self.forget_settled()

    def forget_settled(self) -> None:
        """Drop settled completions, and completions of partitions that another worker owns."""
        self.pending = self._still_owed(self.pending)
        self._lingering.completions = self._still_owed(self._lingering.completions)
        if not self.pending:
            self.group_commit.left()

    def _land(self) -> None:
        batch = self._settler.settled()
        if batch is not None:
            seconds = self._clock.monotonic() - self._settle_began
            self._metrics.job_seconds.labels("settle").observe(seconds)
            trace_settled(batch, self._clock.time(), seconds)
            self.apply(batch)

    def _begin(self, handed_over: int) -> None:
        """Begin a transaction if there is anything to commit and group commit does not ask to wait."""
        if self._held.partitions and not self._settler.offsets_swept:
            self._settler.sweep_offsets()
            return
        if self.group_commit.expects(self._clock.monotonic()) or self.group_commit.makes_way(handed_over):
            return
        batch = self.compose()
        if batch.offsets:
            self.group_commit.left()
            self._settle_began = self._clock.monotonic()
            self._settler.settle(batch)
            for partition, progress in batch.progress.items():
                partition.sent = progress

    def _batch_length(self) -> int:
        """Return the number of pending completions that fit into the next transaction; at least one.

        Each failure halves both bounds, since a transaction that is too large for this network would fail each time.
        """
        most, room = (bound >> self._settler.failures for bound in (MAX_BATCH_RECORDS, MAX_BATCH_BYTES))
        for length, completion in enumerate(islice(self.pending, most), 1):
            room -= completion.output_bytes
            if room <= 0:
                return length
        return most

    def _reread(self) -> Undone:
        """Read the committed progress, and drop completions that the last transaction did commit.

        Returns partitions whose confirmed progress is not committed any more.
        """
        owned = [p for p in self._held.partitions.values() if p.phase in (Phase.OPEN, Phase.REVOKING)]
        committed = self._held.committed(owned, REREAD_SECONDS)
        if committed is None:
            return []
        undone: Undone = []
        for partition in owned:
            progress = committed[partition.id] or Progress(0)
            if progress.is_of_another_topic(partition.topic_mark):
                progress = Progress(0)
            if progress.includes(partition.confirmed):
                partition.adopt(progress)
            else:
                undone.append((partition, progress))
        self.forget_settled()
        self._settler.reread()
        return undone

    def _still_owed(self, completions: list[Handled]) -> list[Handled]:
        """Return the completions that are still to be settled. Subtract the settled completions from the load."""
        kept = []
        for completion in completions:
            partition, record = completion.partition, completion.record
            if not partition.owned:
                continue
            if partition.ledger.is_taken(record.offset):
                kept.append(completion)
                continue
            self._held.load.let_go(partition, record)
            self._isolation.settled(partition, record.offset)
        return kept


def _has_time(completion: Handled) -> bool:
    """True if this completion can wait: its partition is not being revoked, and its record is not a suspect."""
    partition = completion.partition
    return partition.phase is Phase.OPEN and completion.record.offset not in partition.suspects
