"""Settle: outputs and progress of many records in one Kafka transaction; and repair, when that goes wrong.

Settle makes one bounded attempt, on a thread of its own, so that records are taken while Kafka works on it. What it
could not finish becomes a state, and `repair` makes one bounded step out of it, so that the caller keeps consuming in
between and rebalances are heard:

    READY ──settle──► SETTLING ──► READY                  committed
      │                  ├──► COMMITTING ──► READY        the commit may be called again, and was in the end applied
      │                  ├──► ABORTING ────┐              the broker refused: another generation owns the partitions
      │                  ├──► REBUILDING ──┴► SWEEPING ──► REREADING ──► READY
      └──────────────────────────────────► SWEEPING       a topic that this producer has not written to yet

REBUILDING makes a new producer: after a fatal error, and after any transactional call that timed out, since such a
call may still be under way and could meet the next transaction (librdkafka has no KIP-890 yet). Its
`init_transactions` ends whatever the old one left. Whether that was applied only the committed progress can tell, so
REREADING asks for it.

SWEEPING comes before that, since an ended transaction is not always gone. Offsets may reach the group coordinator
after it was ended, and no marker follows (seen when a broker froze). And a transaction coordinator takes a partition
that has no leader at that moment for one that was deleted, and ends the transaction without a marker there (Kafka
4.3.1, `KRaftMetadataCache.getPartitionLeaderEndpoint`; seen whenever the only broker was killed under load). What was
written then stays open under the producer id: readers wait behind it, offsets stay pending for ever, and the next
transaction of the same id decides over both. A sweep is that transaction: it writes to each partition of the topics
that may hold such a rest, sends offsets, and is aborted; `sweep` says which topics these are, and takes many partitions
in several steps. No such topic is written to before its sweep, so that nothing of a predecessor that died is ever
committed. A topic without a leader is swept when it has one, and holds up only who has to write to it. What a sweep
rolls back may have been confirmed to us; REREADING sees it by
the offsets. It does not see outputs that are rolled back while their offsets are not: that takes a marker that was
written for the offsets and skipped for an output, which one broker does not do and three copies rule out.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from telemetry.clock import Clock, Deadline
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.stage.bounded import BoundedCaller, Call, overdue
from workers.stage.partition import Partition, Phase
from workers.stage.progress import Progress
from workers.stage.record import Output
from workers.stage.sweep import AGAIN_SECONDS, Layout, LeaderMissing, Sweeps

SEND_SECONDS = 5.0
COMMIT_SECONDS = 5.0
ABORT_SECONDS = 2.0
INIT_SECONDS = 2.0
CALL_MARGIN_SECONDS = 1.0
REST_SECONDS = 1.0
SWEEP_KEY = b"sweep"
"""Of what is aborted at once, and seen by nobody who reads what is committed. A compacted topic takes none without."""
OUTPUTS_A_HOME = 100
FATAL_ERRORS_ALLOWED = 3
FATAL_WINDOW_SECONDS = 60.0

log = get_logger()


class SettlerState(Enum):
    """What has to happen before the next transaction; the arrows are in the module's docstring."""

    READY = "ready"
    SETTLING = "settling"
    COMMITTING = "committing"
    ABORTING = "aborting"
    REBUILDING = "rebuilding"
    SWEEPING = "sweeping"
    REREADING = "rereading"


class IdentityShared(Exception):  # noqa: N818
    """Another process uses the same transactional.id: two replicas have the same POSTBACK_REPLICA."""


@dataclass(slots=True)
class Batch:
    """What one transaction carries: for each partition the offsets that it makes done, and all outputs."""

    offsets: defaultdict[Partition, list[int]] = field(default_factory=lambda: defaultdict(list))
    outputs: list[Output] = field(default_factory=list)
    progress: dict[Partition, Progress] = field(default_factory=dict)
    """What is committed for each, once the batch is on its way: meanwhile more of them may be seen."""

    def homes(self, turn: int) -> list[int]:
        """Partition numbers for outputs that name none; another choice each turn.

        They are numbers of sources, so that a dead worker's open transaction holds back only its own partitions;
        and they are few, since each costs a request of its own (librdkafka sends no two partitions in one), an end
        marker, and a fetch of every reader.
        """
        numbers = sorted({partition.number for partition, offsets in self.offsets.items() if offsets})
        start = turn % max(1, len(numbers))
        return (numbers[start:] + numbers[:start])[: 1 + len(self.outputs) // OUTPUTS_A_HOME]


def producer_config(config: dict[str, Any], transactional_id: str) -> dict[str, Any]:
    """Librdkafka properties of a settling producer.

    `retry.backoff.ms`: back-to-back transactions meet CONCURRENT_TRANSACTIONS, and its default of 100 would cost
    107 ms each. `transaction.timeout.ms`: how long a killed worker's open transaction holds up others.
    """
    return {
        "linger.ms": 5,
        "compression.type": "lz4",
        "message.max.bytes": 2_000_000,
        **config,
        "transactional.id": transactional_id,
        "transaction.timeout.ms": 5_000,
        "retry.backoff.ms": 5,
        "retry.backoff.max.ms": 50,
        "enable.idempotence": True,
    }


class _CommitUnderWay:
    """A transaction that is under way, on the caller's thread."""

    def __init__(self, batch: Batch, clock: Clock) -> None:
        self.batch = batch
        self.left_behind = False
        self._clock = clock
        self._enter(SettlerState.ABORTING, SEND_SECONDS)

    def _enter(self, phase: SettlerState, seconds: float) -> None:
        self.phase = phase
        """What is to be done where the call that is being made fails."""
        self._deadline = Deadline.after(self._clock, seconds + CALL_MARGIN_SECONDS)

    @property
    def overdue(self) -> bool:
        """Whether the call that is being made takes longer than it may; see `bounded`."""
        return self._deadline.passed

    def send(self, producer: Producer, positions: list[TopicPartition], group_metadata: Any) -> None:
        """What a transaction has to wait for."""
        producer.send_offsets_to_transaction(positions, group_metadata, SEND_SECONDS)
        if not self.left_behind:
            self._enter(SettlerState.COMMITTING, COMMIT_SECONDS)
            producer.commit_transaction(COMMIT_SECONDS)


class Settler:
    """Owns the transactional producer. One thread calls all of it."""

    def __init__(
        self,
        config: dict[str, Any],
        transactional_id: str,
        group_metadata: Callable[[], Any],
        clock: Clock,
        metrics: Metrics,
        outputs: Iterable[str] = (),
    ) -> None:
        """`outputs` are swept at the start where that may be needed: their readers may wait behind a rest."""
        self._config = producer_config(config, transactional_id)
        self._transactional_id = transactional_id
        self._group_metadata = group_metadata
        self._clock = clock
        self._metrics = metrics
        self._fatal_at: deque[float] = deque()
        self._flight: tuple[_CommitUnderWay, Call] | None = None
        self._committing: Batch | None = None
        self._partitions_of: dict[str, int] = {}
        self._turn = 0
        self._sweeps = Sweeps(outputs)
        self._written: frozenset[str] = frozenset()
        """Topics of the transaction that was begun last, until it is committed."""
        self._look_again_at = 0.0
        """Monotonic seconds at which topics are swept again that had no leader."""
        self._commits_swept = False
        """Whether a sweep has ended what an owner of one of our partitions may have left in the group."""
        self.offsets_swept = False
        """Whether a sweep has ended what may be pending in the group: until then its partitions may give nothing."""
        self._failures = 0
        self._rest_until = 0.0
        self._producer = Producer(self._config)
        self._caller = BoundedCaller("transactions")
        self.state = SettlerState.REBUILDING

    @property
    def failures(self) -> int:
        """How many calls have failed since a batch was committed last; no more than 10 are counted."""
        return self._failures

    @property
    def resting(self) -> bool:
        """Whether the last failure is too recent for another step: brokers that refuse at once are not hammered."""
        return self._clock.monotonic() < self._rest_until

    def listen(self) -> None:
        """Let the client say what it has to say: its log lines come with a poll. To be called again and again.

        After a while it turns to SWEEPING where topics had no leader: their readers may wait behind a rest.
        """
        self._poll(0)
        if (
            self.state is SettlerState.READY
            and self._sweeps.postponed
            and self._clock.monotonic() >= self._look_again_at
        ):
            self.state = SettlerState.SWEEPING

    def settle(self, batch: Batch) -> None:
        """Begin to commit a batch; `settled` says when it is. Call only when READY."""
        self._committing = None
        topics = frozenset(output.topic for output in batch.outputs)
        if self._sweeps.need(topics) or not self._commits_swept:
            self.state = SettlerState.SWEEPING
            return
        self.state, self._written = SettlerState.ABORTING, topics
        try:
            self._producer.begin_transaction()
            self._turn += 1
            homes = batch.homes(self._turn)
            for index, output in enumerate(batch.outputs):
                self._produce(output, homes[index % len(homes)])
        except KafkaException as error:
            self._failed(error.args[0])
            return
        batch.progress = {partition: partition.progress(offsets) for partition, offsets in batch.offsets.items()}
        positions, flight = _positions(batch.progress), _CommitUnderWay(batch, self._clock)
        self._flight = flight, self._caller.start(flight.send, self._producer, positions, self._group_metadata())
        self.state = SettlerState.SETTLING

    def settled(self) -> Batch | None:
        """Look after the transaction under way: its batch, once it is committed. Raises IdentityShared.

        Where the state is no longer SETTLING, and not READY, the batch is either still being committed, and `repair`
        will return it, or it is not applied.
        """
        if self._flight is None:
            return None
        flight, call = self._flight
        ended = call.has_ended
        if not (ended or flight.overdue):
            return None
        flight.left_behind = not ended
        self._flight, self.state = None, flight.phase
        if flight.phase is SettlerState.COMMITTING:
            self._committing = flight.batch
        try:
            if flight.left_behind:
                raise overdue()
            call.result(0)
        except KafkaException as error:
            self._failed(error.args[0])
            return None
        self._committed()
        return flight.batch

    def repair(self, held: Sequence[Partition]) -> Batch | None:
        """One bounded step towards READY. Returns a batch whose commit has come through after all.

        `held` are the partitions that are assigned to this process.
        """
        self._metrics.repairs.labels(self.state.value).inc()
        try:
            if self.state is SettlerState.COMMITTING:
                self._call(COMMIT_SECONDS, self._producer.commit_transaction)
                batch = self._committing
                self._committed()
                return batch
            if self.state is SettlerState.ABORTING:
                self._call(ABORT_SECONDS, self._producer.abort_transaction)
                self._metrics.settles.labels("aborted").inc()
                self._distrust()
            elif self.state is SettlerState.REBUILDING:
                self._call(INIT_SECONDS, self._producer.init_transactions)
                self.state = SettlerState.SWEEPING
            elif self.state is SettlerState.SWEEPING:
                self._sweep(held)
        except KafkaException as error:
            self._failed(error.args[0])
        return None

    def reread(self) -> None:
        """The caller has adopted what is committed: outputs that were not applied may be produced again."""
        self.state = SettlerState.READY

    def sweep_offsets(self) -> None:
        """The caller holds partitions now. Call only when READY."""
        self.state = SettlerState.SWEEPING

    def sweep_again(self) -> None:
        """The caller cannot read what is committed: something that was ended may still be open."""
        if self.state in (SettlerState.READY, SettlerState.REREADING):
            self._distrust()
            self._rest()

    def carries(self, partition: Partition) -> bool:
        """Whether progress of the partition is under way, and may yet be committed."""
        under_way = self._committing if self._flight is None else self._flight[0].batch
        return under_way is not None and partition in under_way.offsets

    def close(self) -> None:
        """Let go of the producer. An open transaction is ended, so that nobody waits for its time-out."""
        while self.state is SettlerState.SETTLING:
            self.settled()
            self._clock.sleep(0.001)
        if self.state in (SettlerState.ABORTING, SettlerState.COMMITTING):
            self.repair(())
        self._caller.end()
        _retire(self._producer)

    def _distrust(self) -> None:
        """Have everything swept in which something may be open."""
        self._sweeps.doubt(self._written)
        self.offsets_swept = self._commits_swept = False
        self.state = SettlerState.SWEEPING

    def _sweep(self, held: Sequence[Partition]) -> None:
        """One step of a sweep: a transaction over some of what is to be swept, aborted. Offsets go with the last one.

        The marker of one partition's offsets ends those of all. They are one's that was opened, so that they do no harm
        where the sweep itself gets no marker; where none was, they are swept once more before anything is committed.
        """
        if not self._sweeps.is_planned:
            self._plan_sweep()
        places = self._sweeps.step(self._failures)
        is_last = self._sweeps.is_last(places)
        opened = [partition for partition in held if partition.phase is Phase.OPEN or partition.open_committed]
        if places or held:
            self._producer.begin_transaction()
            for topic, number in places:
                self._produce(Output(topic, None, SWEEP_KEY), number)
            self._wait_until_written()  # an abort drops what is not sent, and its partition gets no marker
            if held and is_last:
                positions = _positions({partition: partition.progress([]) for partition in [*opened, *held][:1]})
                metadata = self._group_metadata()
                self._call(SEND_SECONDS, self._producer.send_offsets_to_transaction, positions, metadata)
            self._call(ABORT_SECONDS, self._producer.abort_transaction)
        self._sweeps.done(places)
        if is_last:
            self.offsets_swept, self._commits_swept = bool(held), bool(opened)
            self.state = SettlerState.REREADING

    def _plan_sweep(self) -> None:
        """Look at the topics that are owed a sweep.

        Raises where one has no leader and is written to next: a transaction that waits for it would hold up the readers
        of all others.
        """
        try:
            self._sweeps.plan({topic: self._layout(topic) for topic in self._sweeps.owed})
        except LeaderMissing as missing:
            text = f"a partition of {missing.topic} has no leader"
            raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE, text)) from None
        if self._sweeps.postponed:
            self._look_again_at = self._clock.monotonic() + AGAIN_SECONDS
            log.warning(
                "Topics have a partition without a leader; nothing is written to them until it has one.",
                action="sweep-postponed",
                topics=sorted(self._sweeps.postponed),
            )

    def _layout(self, topic: str) -> Layout:
        found = self._producer.list_topics(topic, timeout=SEND_SECONDS).topics[topic]
        if found.error is not None and found.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise KafkaException(found.error)
        partitions = found.partitions.values()
        if partitions:
            self._partitions_of[topic] = len(partitions)  # or each would be asked for again when it is written to
        copies = min((len(partition.replicas) for partition in partitions), default=1)
        return Layout(len(partitions), copies, all(partition.leader >= 0 for partition in partitions))

    def _call(self, seconds: float, function: Callable[..., Any], *args: Any) -> None:
        """A transactional call, which takes its timeout last; see `bounded` for why that is not enough."""
        self._caller.call(seconds + CALL_MARGIN_SECONDS, function, *args, seconds)

    def _produce(self, output: Output, home: int) -> None:
        partition = output.partition if output.partition is not None else home
        count = self._partition_count(output.topic)
        while True:
            try:
                self._producer.produce(
                    output.topic,
                    output.value,
                    output.key,
                    partition=partition % count,
                    headers=output.headers,  # type: ignore[arg-type]  # the stub wants str | bytes values
                )
            except BufferError:
                self._poll(0.01)  # the client's own queue is full: let it send
            else:
                return

    def _wait_until_written(self) -> None:
        deadline = Deadline.after(self._clock, SEND_SECONDS)
        while len(self._producer):
            if deadline.passed:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "what sweeps was not written in time"))
            self._poll(0.01)

    def _poll(self, seconds: float) -> None:
        """Serve the client's queue, and raise nothing: a fatal error is said by the call that met it or the next one.

        It is an AttributeError or a SystemError where a line for the log follows in the same poll: confluent-kafka
        calls the logger with the first exception still set, and CPython then does not find the method.
        """
        with suppress(KafkaException, AttributeError, SystemError):
            self._producer.poll(seconds)

    def _partition_count(self, topic: str) -> int:
        """How many partitions a topic has: it may have fewer than the sources have."""
        if topic not in self._partitions_of:
            found = self._producer.list_topics(topic, timeout=SEND_SECONDS).topics[topic]
            if found.error is not None:
                raise KafkaException(found.error)
            self._partitions_of[topic] = len(found.partitions)
        return self._partitions_of[topic]

    def _committed(self) -> None:
        self.state, self._committing, self._written = SettlerState.READY, None, frozenset()
        if self._failures:
            log.info("Settling again.", action="settle-repaired", transactional_id=self._transactional_id)
        self._failures = 0
        self._metrics.settles.labels("committed").inc()

    def _failed(self, error: KafkaError) -> None:
        """Choose the way of repair for an error of the call that was made in the current state."""
        log.warning(
            "A transaction did not come through; repairing.",
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
        self._caller.end()
        old, self._producer, self._caller = self._producer, Producer(self._config), BoundedCaller("transactions")
        _retire(old)
        self._partitions_of.clear()
        self._distrust()
        self.state = SettlerState.REBUILDING

    def _count_fatal(self, error: KafkaError) -> None:
        now = self._clock.monotonic()
        self._fatal_at.append(now)
        while self._fatal_at and now - self._fatal_at[0] > FATAL_WINDOW_SECONDS:
            self._fatal_at.popleft()
        if len(self._fatal_at) >= FATAL_ERRORS_ALLOWED:
            raise IdentityShared(
                f"{len(self._fatal_at)} fatal errors within a minute (the last: {error.name()}): another process "
                f"uses the transactional.id {self._transactional_id}. Give each replica its own POSTBACK_REPLICA."
            )


def _positions(progress_of: Mapping[Partition, Progress]) -> list[TopicPartition]:
    return [
        TopicPartition(partition.topic, partition.number, progress.base, progress.encode())
        for partition, progress in progress_of.items()
    ]


def _retire(producer: Producer) -> None:
    """Destroy a producer on a thread of its own: with its broker away that can take longer than a round may."""

    def destroy(doomed: list[Producer]) -> None:
        doomed[0].purge()
        doomed.clear()

    doomed = [producer]
    threading.Thread(target=destroy, args=(doomed,), name="retire-producer", daemon=True).start()
