"""The transactional producer: a client of librdkafka, and the thread that makes its transactional calls.

Each call has two timeouts, one of the client and one of this process, because the client's own timeouts do not always
work. A commit runs while the caller goes on (see `CommitUnderWay`).

librdkafka's `send_offsets_to_transaction` was seen to ignore its timeout and wait for ever, when the broker died while
the request was queued. If the Kafka thread waited for ever, the stage would miss rebalances.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from telemetry.clock import Clock, Deadline
from workers.stage.record import Output
from workers.stage.sweep import Layout

_Answer = SimpleQueue[BaseException | None]


def overdue() -> KafkaException:
    """Return the error for a call that exceeds its timeout."""
    return KafkaException(KafkaError(KafkaError._TIMED_OUT, "the client did not return in time"))


class Call:
    """A call that is under way on another thread."""

    def __init__(self, answer: _Answer) -> None:
        self._answer = answer

    def result(self, seconds: float) -> None:
        """Wait for the call to end. Raises the call's error, and KafkaException (`_TIMED_OUT`) after `seconds`."""
        try:
            error = self._answer.get(timeout=seconds)
        except Empty:
            raise overdue() from None
        if error is not None:
            raise error

    @property
    def has_ended(self) -> bool:
        """True if the call has returned or raised, so that `result` does not wait."""
        return not self._answer.empty()


class ClientThread:
    """A thread that makes calls one after the other. The caller abandons the whole thread if a call is overdue."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], _Answer] | None] = SimpleQueue()
        # The thread is a daemon, because a call that hangs must not keep the process from ending.
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def start(self, function: Callable[..., Any], *args: Any) -> Call:
        """Queue a call of `function` for the thread, and return at once."""
        answer: _Answer = SimpleQueue()
        self._calls.put((function, args, answer))
        return Call(answer)

    def call(self, seconds: float, function: Callable[..., Any], *args: Any) -> None:
        """Call `function` and wait. Raises the function's error, and KafkaException (`_TIMED_OUT`) after `seconds`."""
        self.start(function, *args).result(seconds)

    def end(self) -> None:
        """End the thread after its present call."""
        self._calls.put(None)

    def aside(self, function: Callable[[], None], name: str) -> None:
        """Call `function` on another thread, and do not wait."""
        threading.Thread(target=function, name=name, daemon=True).start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, args, answer = call
            try:
                function(*args)
            except BaseException as error:
                answer.put(error)
            else:
                answer.put(None)


SEND_SECONDS = 5.0
COMMIT_SECONDS = 5.0
ABORT_SECONDS = 2.0
INIT_SECONDS = 2.0
CALL_MARGIN_SECONDS = 1.0
"""The margin by which this process' timeout of a call exceeds the client's."""

MakeProducer = Callable[[dict[str, Any]], Producer]
MakeCaller = Callable[[str], ClientThread]
"""Makes the thread that makes the transactional calls, under this name."""


def producer_config(config: dict[str, Any], transactional_id: str) -> dict[str, Any]:
    """Return librdkafka properties of a settling producer.

    `retry.backoff.ms` is low because back-to-back transactions meet CONCURRENT_TRANSACTIONS: with the default of 100,
    each transaction took 107 ms. `transaction.timeout.ms` bounds how long a killed worker's open transaction holds up
    other workers.
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


class CommitUnderWay:
    """A commit that runs on the thread of `caller`: offsets are sent, then the transaction is committed.

    The Kafka thread reads the state, and sets `left_behind` to abandon the commit.
    """

    def __init__(self, clock: Clock, caller: ClientThread, client: Producer, *sent: Any) -> None:
        self.left_behind = False
        self._clock = clock
        self.is_sent = False
        """True if the offsets were sent, so that the commit itself is under way, or has failed."""
        self._allow(SEND_SECONDS)
        self._call: Call = caller.start(self._send, client, *sent)

    @property
    def has_ended(self) -> bool:
        """True if both calls have returned, or one of the two has raised."""
        return self._call.has_ended

    @property
    def is_overdue(self) -> bool:
        """True if the present call has exceeded its time limit."""
        return self._deadline.passed

    def result(self) -> None:
        """Raise the error of the call that failed, or KafkaException (`_TIMED_OUT`) if the commit was abandoned."""
        if self.left_behind:
            raise overdue()
        self._call.result(0)

    def _allow(self, seconds: float) -> None:
        self._deadline = Deadline.after(self._clock, seconds + CALL_MARGIN_SECONDS)

    def _send(self, client: Producer, positions: list[TopicPartition], group_metadata: Any) -> None:
        client.send_offsets_to_transaction(positions, group_metadata, SEND_SECONDS)
        if not self.left_behind:
            self._allow(COMMIT_SECONDS)
            self.is_sent = True
            client.commit_transaction(COMMIT_SECONDS)


class TransactionalProducer:
    """A transactional client that can be replaced. Methods raise KafkaException. A single thread calls all methods."""

    def __init__(
        self,
        config: dict[str, Any],
        transactional_id: str,
        clock: Clock,
        make_producer: MakeProducer,
        make_caller: MakeCaller = ClientThread,
    ) -> None:
        self._config = producer_config(config, transactional_id)
        self._clock = clock
        self._make_producer = make_producer
        self._make_caller = make_caller
        self._partitions_of: dict[str, int] = {}
        self._client = make_producer(self._config)
        self._caller = make_caller("transactions")

    def replace(self) -> None:
        """Retire the client and make a new one, because a call of the old client may still be under way."""
        self.retire()
        self._client, self._caller = self._make_producer(self._config), self._make_caller("transactions")
        self._partitions_of.clear()

    def retire(self) -> None:
        """End the client and its thread.

        The client is destroyed aside: while the broker is away, this may take too long for the Kafka thread.
        """
        self._caller.end()
        self._caller.aside(partial(_destroy, [self._client]), "retire-producer")

    def init(self) -> None:
        """End a transaction that an earlier client with this transactional.id left open."""
        self._bounded(INIT_SECONDS, self._client.init_transactions)

    def begin(self) -> None:
        """Begin a transaction."""
        self._client.begin_transaction()

    def commit(self) -> None:
        """Commit the transaction."""
        self._bounded(COMMIT_SECONDS, self._client.commit_transaction)

    def abort(self) -> None:
        """Abort the transaction."""
        self._bounded(ABORT_SECONDS, self._client.abort_transaction)

    def send_offsets(self, positions: list[TopicPartition], group_metadata: Any) -> None:
        """Add offsets to the transaction."""
        self._bounded(SEND_SECONDS, self._client.send_offsets_to_transaction, positions, group_metadata)

    def start_commit(self, positions: list[TopicPartition], group_metadata: Any) -> CommitUnderWay:
        """Start adding offsets and committing the transaction on the other thread, and return at once."""
        return CommitUnderWay(self._clock, self._caller, self._client, positions, group_metadata)

    def produce(self, output: Output, home: int) -> None:
        """Add an output to the transaction, by default in partition `home`. Waits while the client's queue is full."""
        partition = output.partition if output.partition is not None else home
        count = self._partition_count(output.topic)
        while True:
            try:
                self._client.produce(
                    output.topic,
                    output.value,
                    output.key,
                    partition=partition % count,
                    headers=output.headers,  # type: ignore[arg-type]  # the stub wants str | bytes values
                )
            except BufferError:
                self.poll(0.01)  # the client's own queue is full, so let it send
            else:
                return

    def wait_until_written(self) -> None:
        """Wait until the client has sent all outputs."""
        deadline = Deadline.after(self._clock, SEND_SECONDS)
        while len(self._client):
            if deadline.passed:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the outputs were not written in time"))
            self.poll(0.01)

    def poll(self, seconds: float) -> None:
        """Serve the client's queue, and suppress errors: the next transactional call raises a fatal error again.

        A poll raises AttributeError or SystemError if a log line follows an error in the same poll. confluent-kafka
        calls the logger while the first exception is still set, and CPython then does not find the method.
        """
        with suppress(KafkaException, AttributeError, SystemError):
            self._client.poll(seconds)

    def layout(self, topic: str) -> Layout:
        """Ask Kafka for a topic's layout."""
        found = self._client.list_topics(topic, timeout=SEND_SECONDS).topics[topic]
        if found.error is not None and found.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise KafkaException(found.error)
        partitions = found.partitions.values()
        if partitions:
            self._partitions_of[topic] = len(partitions)  # so that `produce` need not ask the broker
        copies = min((len(partition.replicas) for partition in partitions), default=1)
        return Layout(len(partitions), copies, all(partition.leader >= 0 for partition in partitions))

    def _partition_count(self, topic: str) -> int:
        """Return the number of a topic's partitions. An output topic may have fewer than the source topic."""
        if topic not in self._partitions_of:
            found = self._client.list_topics(topic, timeout=SEND_SECONDS).topics[topic]
            if found.error is not None:
                raise KafkaException(found.error)
            self._partitions_of[topic] = len(found.partitions)
        return self._partitions_of[topic]

    def _bounded(self, seconds: float, function: Callable[..., Any], *args: Any) -> None:
        """Make a transactional call with `seconds` as its last argument, the client's timeout."""
        self._caller.call(seconds + CALL_MARGIN_SECONDS, function, *args, seconds)


def _destroy(doomed: list[Producer]) -> None:
    """Destroy the only client in the list. The list is emptied, because the thread's arguments live as long as it."""
    doomed[0].purge()
    doomed.clear()
