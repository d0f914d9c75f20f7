"""A compacted topic that is read to its end when a process starts, and followed from then on.

It is how the processes of a fleet share a few facts without a database: the last record of each key counts, and a
record without a value takes the fact back. Every process reads all of it, in no consumer group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from threading import Event, Thread

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from schemas.settings import KafkaSettings
from telemetry.clock import Clock, Deadline
from workers.process import BrokerAway, topic_ids

START_SECONDS = 60.0
"""How long the first reading may take. A process that was killed in a transaction holds it up for some seconds."""

_ASK_SECONDS = 10.0
_ASK_AGAIN_SECONDS = 0.2
_POLL_SECONDS = 0.1
_BATCH = 1_000

Apply = Callable[[bytes | None, bytes | None], None]
"""Takes in a record's key and value; the value is None where the fact is taken back. Must not raise."""


class CompactedTopic:
    """Calls `apply` on the event loop for each committed record: for all there are, and then for each that comes."""

    def __init__(self, kafka: KafkaSettings, topic: str, apply: Apply, clock: Clock) -> None:
        self._kafka = kafka
        self._topic = topic
        self._apply = apply
        self._clock = clock
        self._stopping = Event()
        self._thread: Thread | None = None

    async def start(self) -> None:
        """Return when everything is applied that stood in the topic when this was called.

        Raises ProcessError: TopicMissing, or BrokerAway where that took longer than START_SECONDS.
        """
        await topic_ids(self._kafka, [self._topic])
        ends = await asyncio.to_thread(self._ends)
        loop = asyncio.get_running_loop()
        caught_up: asyncio.Future[None] = loop.create_future()
        self._thread = Thread(
            target=self._follow, args=(loop, ends, caught_up), name=f"follow-{self._topic}", daemon=True
        )
        self._thread.start()
        try:
            async with asyncio.timeout(START_SECONDS):
                await caught_up
        except TimeoutError:
            await self.close()
            raise BrokerAway(f"the topic {self._topic} could not be read to its end in {START_SECONDS:.0f} s") from None

    async def close(self) -> None:
        """Stop following."""
        self._stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _ends(self) -> dict[int, int]:
        """The end of each partition, with what is in open transactions: what was committed behind them counts too."""
        consumer, deadline = self._consumer("read_uncommitted"), Deadline.after(self._clock, _ASK_SECONDS)
        try:
            while True:
                try:
                    return self._ask_ends(consumer)
                except KafkaException as error:  # a partition that is being moved, or was made a moment ago
                    if deadline.passed:
                        why = f"the end of the topic {self._topic} cannot be asked for ({error.args[0].name()})"
                        raise BrokerAway(why) from None
                    self._clock.sleep(_ASK_AGAIN_SECONDS)
        finally:
            consumer.close()

    def _ask_ends(self, consumer: Consumer) -> dict[int, int]:
        numbers = consumer.list_topics(self._topic, timeout=_ASK_SECONDS).topics[self._topic].partitions
        asked = [TopicPartition(self._topic, number) for number in numbers]
        return {each.partition: consumer.get_watermark_offsets(each, timeout=_ASK_SECONDS)[1] for each in asked}

    def _consumer(self, isolation: str) -> Consumer:
        return Consumer(
            {
                "fetch.wait.max.ms": 100,
                **self._kafka.client_config(),
                "group.id": "follower",  # asked for by the client; nothing is joined and nothing is committed
                "enable.auto.commit": False,
                "isolation.level": isolation,
                "auto.offset.reset": "earliest",  # of a topic that was made anew: else what comes first is passed over
                "enable.partition.eof": True,
            }
        )

    def _follow(self, loop: asyncio.AbstractEventLoop, ends: dict[int, int], caught_up: asyncio.Future[None]) -> None:
        consumer = self._consumer("read_committed")
        consumer.assign([TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in ends])
        unread = {number for number, end in ends.items() if end > 0}
        if not unread:
            self._on_loop(loop, _done, caught_up)
        while not self._stopping.is_set():
            facts, reached = self._some(consumer)
            if facts:
                self._on_loop(loop, self._take_in, facts)
            if unread:
                unread -= {number for number, offset in reached if offset >= ends[number]}
                if not unread:
                    self._on_loop(loop, _done, caught_up)
        consumer.close()

    def _some(self, consumer: Consumer) -> tuple[list[tuple[bytes | None, bytes | None]], list[tuple[int, int]]]:
        """Keys and values that came, and (partition, offset) of ends that were reached."""
        facts: list[tuple[bytes | None, bytes | None]] = []
        reached = []
        for message in consumer.consume(_BATCH, _POLL_SECONDS):
            error = message.error()
            if error is None:
                facts.append((message.key(), message.value()))
            elif error.code() == KafkaError._PARTITION_EOF:
                reached.append((message.partition() or 0, message.offset() or 0))
            # else the broker is away, which the client mends by itself; what is known stays known meanwhile
        return facts, reached

    def _take_in(self, facts: Sequence[tuple[bytes | None, bytes | None]]) -> None:
        for key, value in facts:
            self._apply(key, value)

    def _on_loop(self, loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(call, *args)


def _done(caught_up: asyncio.Future[None]) -> None:
    if not caught_up.done():
        caught_up.set_result(None)
