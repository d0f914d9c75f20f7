"""Complete records, from the handler's return until their outputs and their progress are committed.

Group commit: a complete record waits a short time for other records to share its transaction. A transaction costs Kafka
the same for one record as for a thousand. An engine's jobs take seconds and return one by one: a wait of a small part
of these seconds adds little latency, and saves most transactions. Jobs that take no time do not wait, unless
`group_commit_seconds` sets a shortest wait. This setting is meant for outputs that no reader waits for.

Composing a transaction holds the interpreter lock for a millisecond or two. The event loop needs less time to begin a
few records, so the records go first: after a round that handed over a few records, the transaction waits for one more
round, but only once.

Lingering records wait longer, to share a transaction with other lingering records. Each transaction with a lingering
record writes to one more topic and leaves an end marker there. Readers of that topic have to fetch each marker before
the records that they wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from queue import Empty, SimpleQueue

from schemas.topics import TRACEPARENT
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from telemetry.traces import collecting, parse_traceparent, past_span
from workers.stage.isolation import Cohort, Isolation
from workers.stage.partition import Partition, Phase
from workers.stage.partitions import Partitions
from workers.stage.progress import Progress
from workers.stage.record import Record
from workers.stage.runner import Handled
from workers.stage.settler import Batch, Settler, SettlerState

SHARE = 0.02
"""The wait, as a fraction of the handling time."""
MOST_SECONDS = 0.025
"""The longest wait that follows from handling times."""
_WEIGHT = 0.05
"""The weight of the newest record in the moving average."""
FEW_RECORDS = 8
"""If more new records than this number begin, the transaction does not wait for one more round. The more records begin,
the less time the wait would save for each record.
"""
LINGER_SECONDS = 0.5
LINGER_RECORDS = 100
LINGER_BYTES = 4 * 1024 * 1024
"""A quarter of the bytes of the smallest window. Lingering records must not fill the window, since a full window stops
fetching."""


class GroupCommit:
    """Computes a stage's wait from a moving average over its records. Only the Kafka thread calls the methods."""

    def __init__(self, least_seconds: float = 0.0) -> None:
        self._least_seconds = least_seconds
        self._average = 0.0
        self._since: float | None = None
        self.made_way = False
        """True if the pending records have already waited one round to let new records begin."""

    @property
    def seconds(self) -> float:
        """The longest time that a complete record waits for other records."""
        return max(self._least_seconds, self._average)

    def came(self, took_seconds: float, now: float) -> None:
        """Count a record that completed at `now` (monotonic seconds) after `took_seconds` of handling."""
        self._average += _WEIGHT * (min(MOST_SECONDS, SHARE * took_seconds) - self._average)
        if self._since is None:
            self._since = now

    def left(self) -> None:
        """Note that no complete record is waiting."""
        self._since, self.made_way = None, False

    def expects(self, now: float) -> bool:
        """Return whether the first complete record still waits for other records."""
        return self._since is not None and now - self._since < self.seconds

    def makes_way(self, handed_over: int) -> bool:
        """Return whether the complete records wait one more round. `handed_over`: records dispatched in this round."""
        if self._since is None or self.made_way or not 0 < handed_over <= FEW_RECORDS:
            return False
        self.made_way = True
        return True


class Lingering:
    """Completions that may be settled later, in order of arrival. Only the Kafka thread calls the methods."""

    def __init__(self) -> None:
        self.completions: list[Handled] = []
        self._since = 0.0
        self._bytes = 0

    def add(self, completion: Handled, now: float) -> None:
        """Add a completion. `now`: monotonic seconds."""
        if not self.completions:
            self._since, self._bytes = now, 0
        self.completions.append(completion)
        self._bytes += len(completion.record.value)

    def over(self, now: float) -> list[Handled]:
        """Remove and return all completions if they may wait no longer, else return an empty list.

        They may wait no longer if the first one has waited for LINGER_SECONDS, or if a bound is reached.
        """
        much = len(self.completions) >= LINGER_RECORDS or self._bytes >= LINGER_BYTES
        return self.end() if much or now >= self._since + LINGER_SECONDS else []

    def end(self) -> list[Handled]:
        """Remove and return all completions."""
        ended, self.completions = self.completions, []
        return ended


def trace_settled(batch: Batch, now: float, seconds: float) -> None:
    """Export a span for each trace that the batch's outputs continue. `now` is the commit's Unix time.

    Outputs of one trace share a span. An output without a `traceparent`, such as the record of an attempt, has none.
    """
    if not collecting():
        return
    headers = (header for output in batch.outputs for header in output.headers or ())
    for carried in {value for name, value in headers if name == TRACEPARENT and value is not None}:
        parent = parse_traceparent(carried.decode("latin-1"))
        if parent is not None:
            past_span("settle", (now - seconds, now), parent, {"records": len(batch.outputs)})


MAX_BATCH_RECORDS = 5_000
MAX_BATCH_BYTES = 16 * 1024 * 1024
"""Cap on the output bytes of a transaction.

Kafka aborts a transaction after five seconds; 5,000 large results take longer.
"""
REREAD_SECONDS = 2.0
_SETTLE_WEIGHT = 0.2
"""The weight of the newest transaction in the average of their seconds."""

Undone = list[tuple[Partition, Progress]]
"""Partitions whose confirmed commit Kafka has undone, each with the progress that is committed now."""

log = get_logger()


class Transactions:
    """Commits complete records in transactions, one at a time. Only the Kafka thread calls the methods."""

    def __init__(
        self,
        group_commit_seconds: float,
        partitions: Partitions,
        isolation: Isolation,
        completions: SimpleQueue[list[Handled]],
        settler: Settler,
        clock: Clock,
        metrics: Metrics,
        on_end: Callable[[list[tuple[Partition, Record]]], None],
    ) -> None:
        """`on_end` is called with the records whose handler has returned, and may have stated their real costs."""
        self._partitions = partitions
        self._on_end = on_end
        self._isolation = isolation
        self._settler = settler
        self._clock = clock
        self._metrics = metrics
        self._lingering = Lingering()
        self._announced: Cohort | None = None
        """The cohort whose members the last batch commits as running."""
        self._usual_seconds = 0.0
        """A moving average of the seconds from the beginning of a transaction to its end."""
        self._settle_began = 0.0
        """The monotonic time at which the transaction under way began."""
        self.completions = completions
        """The queue into which the event loop puts lists of completions."""
        self.pending: list[Handled] = []
        """Completions to settle next."""
        self.group_commit = GroupCommit(group_commit_seconds)

    @property
    def seconds_left(self) -> float:
        """The seconds after which the transaction under way usually ends; 0 if it has taken longer already."""
        return max(0.0, self._usual_seconds - (self._clock.monotonic() - self._settle_began))

    @property
    def handled(self) -> int:
        """The number of records that the handler has handled, not deferred, and that wait to be settled."""
        return sum([not completion.deferred for completion in self.pending])

    def collect(self) -> list[tuple[Partition, Record]]:
        """Collect completions from the event loop. Returns the records whose engine died with them."""
        now, ended, healthy = self._clock.monotonic(), list[tuple[Partition, Record]](), False
        died: list[tuple[Partition, Record]] = []
        for completion in self._came():
            partition, record, outputs = completion.partition, completion.record, completion.outputs
            if partition.phase is Phase.GONE:
                continue  # a late completion of an assignment that has ended
            if not completion.deferred:
                ended.append((partition, record))
                self._partitions.load.end(partition, record)
            if outputs is not None and not completion.deferred and record.shows_health:
                healthy = True
            if outputs is None:
                died.append((partition, record))
            elif outputs and outputs[0].may_linger and completion.may_linger and _has_time(completion):
                self._lingering.add(completion, now)
            else:
                self.complete(completion, now)
        if healthy:
            self._isolation.completed()
        if ended:
            self._on_end(ended)
            self._metrics.in_flight.dec(len(ended))
        for completion in self._lingering.over(now):
            self.complete(completion, now)
        return died

    def _came(self) -> list[Handled]:
        came: list[Handled] = []
        while True:
            try:
                came += self.completions.get_nowait()
            except Empty:
                return came

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
        elif (late := self._settler.repair(list(self._partitions.held.values()))) is not None:
            self.apply(late)
        return []

    def compose(self) -> Batch:
        """Return a batch of complete records. Partitions that need a commit without a record are included.

        Doubted topics are left out.
        """
        batch, doubted, pending = Batch(), self._partitions.doubted, self.pending
        if doubted:
            pending = [completion for completion in pending if completion.partition.topic not in doubted]
        for completion in pending[: self._batch_length(pending)]:
            batch.offsets[completion.partition].append(completion.record.offset)
            batch.outputs += completion.outputs or ()
        self._announced, now = self._isolation.announced, self._clock.monotonic()
        announced = {partition for partition, _ in self._announced.members} if self._announced else set()
        if any(partition.topic in doubted for partition in announced):
            self._announced, announced = None, set()
        for partition in self._partitions.held.values():
            if partition.topic in doubted:
                continue
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
            self._usual_seconds += _SETTLE_WEIGHT * (seconds - self._usual_seconds)
            self._metrics.job_seconds.labels("settle").observe(seconds)
            trace_settled(batch, self._clock.time(), seconds)
            self.apply(batch)

    def _begin(self, handed_over: int) -> None:
        """Begin a transaction if there is anything to commit and group commit does not ask to wait."""
        if self._partitions.held and not self._settler.offsets_swept:
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

    def _batch_length(self, pending: list[Handled]) -> int:
        """Return the number of these completions that fit into the next transaction; at least one.

        Each failure halves both bounds, since a transaction that is too large for this network would fail each time.
        """
        most, room = (bound >> self._settler.failures for bound in (MAX_BATCH_RECORDS, MAX_BATCH_BYTES))
        for length, completion in enumerate(islice(pending, most), 1):
            room -= completion.output_bytes
            if room <= 0:
                return length
        return most

    def _reread(self) -> Undone:
        """Read the committed progress, and drop completions that the last transaction did commit.

        Returns partitions whose confirmed progress is not committed any more.
        """
        owned = [p for p in self._partitions.held.values() if p.phase in (Phase.OPEN, Phase.REVOKING)]
        committed = self._partitions.committed(owned, REREAD_SECONDS)
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
        kept, let_go = [], self._partitions.load.let_go
        settled = self._isolation.settled if self._isolation.cohorts else None
        for completion in completions:
            partition, record = completion.partition, completion.record
            if partition.phase is Phase.GONE:
                continue
            if partition.ledger.is_taken(record.offset):
                kept.append(completion)
                continue
            let_go(partition, record)
            if settled is not None:
                settled(partition, record.offset)
        return kept


def _has_time(completion: Handled) -> bool:
    """True if this completion can wait: its partition is not being revoked, and its record is not a suspect."""
    partition = completion.partition
    return partition.phase is Phase.OPEN and completion.record.offset not in partition.suspects
