"""Settling: commits outputs and progress of many records in one Kafka transaction, and repairs failed transactions.

`settle` makes one bounded attempt, on a thread of its own, so that the stage takes records while Kafka works. A failed
attempt changes the settler's state, and each call of `repair` makes one bounded step towards READY. Between the steps
the caller keeps consuming, and does not miss rebalances.

    READY ──settle──► SETTLING ──► READY                  committed
      │                  ├──► COMMITTING ──► READY        the commit is called again, and succeeds
      │                  ├──► ABORTING ────┐              the broker refused: another generation owns the partitions
      │                  ├──► REBUILDING ──┴► SWEEPING ──► REREADING ──► READY
      └──────────────────────────────────► SWEEPING       a topic that this producer has not written to yet

REBUILDING makes a new producer: after a fatal error, and after any transactional call that timed out. A timed-out call
may still be under way, and could act on the next transaction (librdkafka has no KIP-890 yet). The new producer's
`init_transactions` ends the transaction of the old producer. Only the committed progress shows whether Kafka committed
or aborted that transaction, so REREADING reads the committed progress.

SWEEPING comes before REREADING, since an ended transaction may leave *leftovers*: records or offsets that stay open
under the producer id. Two causes are known:

- Offsets may reach the group coordinator after the transaction's end, and no marker follows (seen when a broker froze).
- A transaction coordinator may mistake a partition without a leader for a deleted partition. The coordinator then ends
  the transaction without a marker in this partition (Kafka 4.3.1, `KRaftMetadataCache.getPartitionLeaderEndpoint`; seen
  whenever the only broker was killed under load).

Readers wait behind leftover records, and leftover offsets stay pending for ever. The next transaction of the same id
commits or aborts the leftovers together with its own records. A sweep is a transaction that is aborted for this effect:
it writes to each partition of the topics that may hold leftovers, and sends offsets. `sweep` chooses the topics, and
divides a sweep of many partitions into several transactions. A settler writes to a topic only after the topic's sweep,
so it never commits a dead predecessor's leftovers. A topic without a leader is swept once it has a leader; until then,
only batches with outputs for this topic wait.

A sweep may roll back records that Kafka had confirmed to this process; REREADING notices this by the offsets. REREADING
does not notice rolled-back outputs whose offsets stay committed. For such a rollback, a coordinator must write the
marker for the offsets and skip the marker for the outputs. With single copies, results were lost in this way, though
rarely (docs/explanation/exactly-once.md#sweeping); with three copies of each partition it cannot happen.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from schemas.operator_error import OperatorError
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.stage.partition import Partition, Phase
from workers.stage.producer import ClientThread, CommitUnderWay, MakeCaller, MakeProducer, TransactionalProducer
from workers.stage.progress import Progress
from workers.stage.record import Output
from workers.stage.sweep import AGAIN_SECONDS, LeaderMissing, Sweeps


class SettlerState(Enum):
    """The states of a settler; the module's docstring explains each of them."""

    READY = "ready"
    SETTLING = "settling"
    COMMITTING = "committing"
    ABORTING = "aborting"
    REBUILDING = "rebuilding"
    SWEEPING = "sweeping"
    REREADING = "rereading"


OUTPUTS_A_HOME = 100


@dataclass(slots=True)
class Batch:
    """The outputs of a transaction, and the offsets in each partition that are done once it is committed."""

    offsets: defaultdict[Partition, list[int]] = field(default_factory=lambda: defaultdict(list))
    outputs: list[Output] = field(default_factory=list)
    progress: dict[Partition, Progress] = field(default_factory=dict)
    """The progress to commit. It is fixed when the commit begins, because partitions may see more records meanwhile."""

    def homes(self, turn: int) -> list[int]:
        """Return partition numbers for outputs that name no partition. Another `turn` gives other numbers.

        The numbers are those of source partitions, so that a dead worker's open transaction holds back only its own
        partitions. A transaction uses few numbers, since each number costs a request, an end marker, and a fetch of
        every reader. (librdkafka sends one request for each partition.)
        """
        numbers = sorted({partition.number for partition, offsets in self.offsets.items() if offsets})
        start = turn % max(1, len(numbers))
        return (numbers[start:] + numbers[:start])[: 1 + len(self.outputs) // OUTPUTS_A_HOME]


def positions(progress_of: Mapping[Partition, Progress]) -> list[TopicPartition]:
    """Return the offset to commit for each partition, with the partition's progress as metadata."""
    return [
        TopicPartition(partition.topic, partition.number, progress.base, progress.encode())
        for partition, progress in progress_of.items()
    ]


REST_SECONDS = 1.0
"""The longest pause after a failure."""
SWEEP_KEY = b"sweep"
"""The key of a sweep's records.

They need a key because a compacted topic refuses records without one. A sweep aborts at once, so no reader of committed
records sees its records.
"""
FATAL_ERRORS_ALLOWED = 4
FATAL_WINDOW_SECONDS = 60.0
FATAL_PAUSE_SECONDS = 5.0
"""Fatal errors that follow each other within this time are counted as one.

A broker that was frozen still answers the requests of producers that were replaced meanwhile, and each of these
requests can fence the present producer. By contrast, two processes with one identity fence each other without an end.
"""

log = get_logger()


class IdentityShared(OperatorError):  # noqa: N818
    """Another process uses the same transactional.id: two replicas have the same POSTBACK_REPLICA."""


class Settler:
    """Owns the transactional producer. A single thread calls all methods."""

    def __init__(
        self,
        config: dict[str, Any],
        transactional_id: str,
        group_metadata: Callable[[], Any],
        clock: Clock,
        metrics: Metrics,
        outputs: Iterable[str] = (),
        make_producer: MakeProducer = Producer,
        make_caller: MakeCaller = ClientThread,
    ) -> None:
        """`outputs` are topics to sweep at the start if necessary: leftovers may hold up the topics' readers."""
        self._transactional_id = transactional_id
        self._group_metadata = group_metadata
        self._clock = clock
        self._metrics = metrics
        metrics.settles.begin()
        metrics.repairs.begin()
        self._fatal_at: deque[float] = deque()
        self._flight: tuple[Batch, CommitUnderWay] | None = None
        self._committing: Batch | None = None
        self._turn = 0
        self._sweeps = Sweeps(outputs)
        self._written: frozenset[str] = frozenset()
        """The output topics of the last transaction, until it is committed."""
        self._look_again_at = 0.0
        """The monotonic time of the next sweep of topics that had no leader."""
        self._commits_swept = False
        """True once a sweep has sent offsets of an opened partition, and so has ended the group's pending offsets.

        While False, no commit begins.
        """
        self.offsets_swept = False
        """True if a sweep has ended the group's pending offsets. While False, reading committed progress may fail."""
        self._failures = 0
        self._rest_until = 0.0
        self._producer = TransactionalProducer(config, transactional_id, clock, make_producer, make_caller)
        self.state = SettlerState.REBUILDING

    @property
    def failures(self) -> int:
        """The number of calls that have failed since the last committed batch, at most 10."""
        return self._failures

    @property
    def resting(self) -> bool:
        """True if the last failure is too recent for another step: brokers that refuse need a pause between steps."""
        return self._clock.monotonic() < self._rest_until

    def listen(self) -> None:
        """Poll the client, so that it writes its log lines. Call this every round.

        Enters SWEEPING from time to time if topics had no leader: leftovers may hold up the topics' readers.
        """
        self._producer.poll(0)
        if (
            self.state is SettlerState.READY
            and self._sweeps.postponed
            and self._clock.monotonic() >= self._look_again_at
        ):
            self.state = SettlerState.SWEEPING

    def settle(self, batch: Batch) -> None:
        """Begin to commit a batch; `settled` returns the committed batch. Call this only when READY."""
        self._committing = None
        topics = frozenset(output.topic for output in batch.outputs)
        if self._sweeps.need(topics) or not self._commits_swept:
            self.state = SettlerState.SWEEPING
            return
        self.state, self._written = SettlerState.ABORTING, topics
        try:
            self._producer.begin()
            self._turn += 1
            homes = batch.homes(self._turn)
            for index, output in enumerate(batch.outputs):
                self._producer.produce(output, homes[index % len(homes)])
        except KafkaException as error:
            self._failed(error.args[0])
            return
        batch.progress = {partition: partition.progress(offsets) for partition, offsets in batch.offsets.items()}
        self._flight = batch, self._producer.start_commit(positions(batch.progress), self._group_metadata())
        self.state = SettlerState.SETTLING

    def settled(self) -> Batch | None:
        """Return the batch of the transaction under way if the batch is committed, else None. Raises IdentityShared.

        After a failure the state is neither SETTLING nor READY. In COMMITTING, `repair` returns the batch
        later. Every other state leads to REREADING, which shows if the batch is committed.
        """
        if self._flight is None:
            return None
        batch, commit = self._flight
        ended = commit.has_ended
        if not (ended or commit.is_overdue):
            return None
        commit.left_behind = not ended
        self._flight = None
        self.state = SettlerState.COMMITTING if commit.is_sent else SettlerState.ABORTING
        if self.state is SettlerState.COMMITTING:
            self._committing = batch
        try:
            commit.result()
        except KafkaException as error:
            self._failed(error.args[0])
            return None
        self._committed()
        return batch

    def repair(self, held: Sequence[Partition]) -> Batch | None:
        """Make one bounded step towards READY. Returns the batch if this step committed it.

        `held` are the partitions that are assigned to this process. Raises IdentityShared.
        """
        self._metrics.repairs.labels(self.state.value).inc()
        try:
            if self.state is SettlerState.COMMITTING:
                self._producer.commit()
                batch = self._committing
                self._committed()
                return batch
            if self.state is SettlerState.ABORTING:
                self._producer.abort()
                self._metrics.settles.labels("aborted").inc()
                self._distrust()
            elif self.state is SettlerState.REBUILDING:
                self._producer.init()
                self.state = SettlerState.SWEEPING
            elif self.state is SettlerState.SWEEPING:
                self._sweep(held)
        except KafkaException as error:
            self._failed(error.args[0])
        return None

    def reread(self) -> None:
        """Enter READY: the caller has adopted the committed progress, and may repeat uncommitted outputs."""
        self.state = SettlerState.READY

    def sweep_offsets(self) -> None:
        """Enter SWEEPING, because the caller holds partitions now. Call this only when READY."""
        self.state = SettlerState.SWEEPING

    def sweep_again(self) -> None:
        """If READY or REREADING, enter SWEEPING: the caller cannot read the progress, perhaps because of leftovers."""
        if self.state in (SettlerState.READY, SettlerState.REREADING):
            self._distrust()
            self._rest()

    def carries(self, partition: Partition) -> bool:
        """Return whether a commit with progress of the partition is under way."""
        under_way = self._committing if self._flight is None else self._flight[0]
        return under_way is not None and partition in under_way.offsets

    def close(self) -> None:
        """End an open transaction, so that no reader waits for its timeout, and discard the producer."""
        while self.state is SettlerState.SETTLING:
            self.settled()
            self._clock.sleep(0.001)
        if self.state in (SettlerState.ABORTING, SettlerState.COMMITTING):
            self.repair(())
        self._producer.retire()

    def _distrust(self) -> None:
        """Enter SWEEPING for every topic that may hold leftovers, and for the group's offsets."""
        self._sweeps.doubt(self._written)
        self.offsets_swept = self._commits_swept = False
        self.state = SettlerState.SWEEPING

    def _sweep(self, held: Sequence[Partition]) -> None:
        """Make one step of a sweep: write to some of its partitions, and abort. The last step also sends offsets.

        The abort marker for one partition's offsets ends pending offsets of all partitions. This step sends the real
        progress of an opened partition, which does no harm even if it is committed by mistake. If no partition is open
        yet, offsets are swept once more before the first commit.
        """
        if not self._sweeps.is_planned:
            self._plan_sweep()
        places = self._sweeps.step(self._failures)
        is_last = self._sweeps.is_last(places)
        opened = [partition for partition in held if partition.phase is Phase.OPEN or partition.open_committed]
        if places or held:
            self._producer.begin()
            for topic, number in places:
                self._producer.produce(Output(topic, None, SWEEP_KEY), number)
            self._producer.wait_until_written()  # a partition gets a marker only if its record is sent before the abort
            if held and is_last:
                lent = positions({partition: partition.progress([]) for partition in [*opened, *held][:1]})
                self._producer.send_offsets(lent, self._group_metadata())
            self._producer.abort()
        self._sweeps.done(places)
        if is_last:
            self.offsets_swept, self._commits_swept = bool(held), bool(opened)
            self.state = SettlerState.REREADING

    def _plan_sweep(self) -> None:
        """Ask for the layouts of the topics that need a sweep, and plan the sweep's steps.

        Raises KafkaException if the next batch has outputs for a topic without a leader: a transaction that waits for
        this leader would hold up the readers of all other topics.
        """
        try:
            self._sweeps.plan({topic: self._producer.layout(topic) for topic in self._sweeps.owed})
        except LeaderMissing as missing:
            text = f"a partition of {missing.topic} has no leader"
            raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE, text)) from None
        if self._sweeps.postponed:
            self._look_again_at = self._clock.monotonic() + AGAIN_SECONDS
            log.warning(
                "Partitions have no leader; postponing writes to their topics until each has a leader again.",
                action="sweep-postponed",
                topics=sorted(self._sweeps.postponed),
            )

    def _committed(self) -> None:
        self.state, self._committing, self._written = SettlerState.READY, None, frozenset()
        if self._failures:
            log.info("Settling again.", action="settle-repaired", transactional_id=self._transactional_id)
        self._failures = 0
        self._metrics.settles.labels("committed").inc()

    def _failed(self, error: KafkaError) -> None:
        """Choose the next state after an error of the call that was made in the present state."""
        log.warning(
            "A transaction failed; repairing.",
            action="settle-failed",
            state=self.state.value,
            error=error.name(),
            fatal=error.fatal(),
            transactional_id=self._transactional_id,
        )
        self._metrics.settles.labels("failed").inc()
        self._rest()
        if error.fatal():
            self._count_fatal(error)
            self._rebuild()
        elif self.state is SettlerState.SWEEPING:
            self._rebuild()
        elif error.txn_requires_abort():
            self.state, self._committing = SettlerState.ABORTING, None
        elif self.state is SettlerState.REBUILDING:
            return  # init_transactions may be called again until it succeeds
        elif error.code() == KafkaError._TIMED_OUT:
            self._rebuild()
        elif not (error.retriable() and self.state is SettlerState.COMMITTING):
            self.state, self._committing = SettlerState.ABORTING, None

    def _rest(self) -> None:
        self._rest_until = self._clock.monotonic() + min(REST_SECONDS, 0.01 * 2**self._failures)
        self._failures = min(self._failures + 1, 10)

    def _rebuild(self) -> None:
        self._committing = None
        self._producer.replace()
        self._distrust()
        self.state = SettlerState.REBUILDING

    def _count_fatal(self, error: KafkaError) -> None:
        now = self._clock.monotonic()
        if self._fatal_at and now - self._fatal_at[-1] < FATAL_PAUSE_SECONDS:
            return
        self._fatal_at.append(now)
        while self._fatal_at and now - self._fatal_at[0] > FATAL_WINDOW_SECONDS:
            self._fatal_at.popleft()
        if len(self._fatal_at) >= FATAL_ERRORS_ALLOWED:
            raise IdentityShared(
                f"fatal errors for {now - self._fatal_at[0]:.0f} s (the last: {error.name()}): another process "
                f"uses the transactional.id {self._transactional_id}. Give each replica its own POSTBACK_REPLICA."
            )
