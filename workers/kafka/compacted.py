"""A compacted topic that a process reads to its end at the start, and follows from then on.

The processes of a fleet share a few facts through compacted topics, without a database. The last record of a key is the
valid one, and a record without a value deletes the fact. Every process reads the whole topic, without a consumer group.

While the broker is away, the process goes on with the known facts, because without Kafka no jobs are settled anyway.
`reasons` reports the age of the facts. Once the broker is back, reading goes on from the last offset. But Kafka keeps a
deletion for a day only, so after half a day without reading the process may hold deleted facts. The process then ends,
and a new process reads the topic from the beginning. The process also ends if `apply` raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from threading import Event, Thread

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from schemas.settings import KafkaSettings
from schemas.topics import TOMBSTONES_KEPT_MS
from telemetry.clock import Clock, Deadline
from telemetry.logs import get_logger
from workers.kafka.clients import client_config
from workers.kafka.topics import BrokerAway, topic_ids
from workers.system.errors import ProcessError
from workers.system.side_task import SideTask

START_SECONDS = 60.0
"""The longest time for which the first reading may receive no record.

The open transaction of a killed process delays reading for some seconds. The whole reading has no time limit, since the
topic may have any length."""
SILENT_SECONDS = 20.0
"""The process is not ready when its facts are this old.

The open transaction of a killed process delays records for a shorter time.
"""
STALE_SECONDS = TOMBSTONES_KEPT_MS / 1000 / 2
STUCK_SECONDS = 60.0

_ASK_SECONDS = 10.0
_WITHOUT_LEADER = frozenset({KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE})
_ASK_AGAIN_SECONDS = 0.2
_LOOK_SECONDS = 3.0
_ANSWER_SECONDS = 2.0
_POLL_SECONDS = 0.1
_BATCH = 1_000

Apply = Callable[[bytes | None, bytes | None], None]
"""Applies a record's key and value; the value None deletes the fact. An exception ends the following of the topic."""

log = get_logger()


class FollowingEnded(ProcessError):  # noqa: N818 - it names what happened
    """A compacted topic can no longer be followed."""


class _TooLongAway(Exception):  # noqa: N818 - private, becomes FollowingEnded
    """The broker was away for so long that this process may have missed the deletion of a fact."""


async def until_caught_up(
    topic: str, caught_up: Awaitable[object], ended: Awaitable[object], read: Callable[[], int]
) -> None:
    """Wait until a topic is read to its end, or is not followed any more. `read` returns the number of records so far.

    Raises BrokerAway if no record came for START_SECONDS, or the exception of `ended`.
    """
    waiting: set[asyncio.Future[object]] = {asyncio.ensure_future(caught_up), asyncio.ensure_future(ended)}
    done: set[asyncio.Future[object]] = set()
    try:
        before = -1
        while not done and before < (before := read()):
            done, _ = await asyncio.wait(waiting, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
    if not done:
        raise BrokerAway(f"the topic {topic} could not be read to its end: no record came for {START_SECONDS:g} s")
    for each in done:
        each.result()


class CompactedTopic(SideTask):
    """Calls `apply` on the event loop for each committed record: present records, then new ones.

    Records that were older than `kept_ms` at the start, by their timestamps, are skipped, because these facts have
    expired.
    """

    def __init__(
        self, kafka: KafkaSettings, topic: str, apply: Apply, clock: Clock, kept_ms: int | None = None
    ) -> None:
        self._kafka = kafka
        self._topic = topic
        self._apply = apply
        self._clock = clock
        self._kept_ms = kept_ms
        self._stopping = Event()
        self._thread: Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._next: dict[int, int] = {}
        """Maps each partition to the next offset to read."""
        self._known_at = self._looked_at = self._beat_at = clock.monotonic()

    async def start(self) -> None:
        """Start following, and return when every record that was in the topic at the time of the call is applied.

        Raises ProcessError: NoSuchTopic, BrokerAway if no record came for START_SECONDS, or FollowingEnded.
        """
        await topic_ids(self._kafka, [self._topic])
        log.info("Reading a topic to its end.", action="topic-reading", topic=self._topic)
        self._looked_at = self._clock.monotonic()
        ends, starts = await asyncio.to_thread(self._ends)
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        caught_up = asyncio.Event()
        self._thread = Thread(
            target=self._follow, args=(loop, starts, ends, caught_up.set), name=f"follow-{self._topic}", daemon=True
        )
        self._beat()
        self._thread.start()
        try:
            await until_caught_up(self._topic, caught_up.wait(), self.ended(), lambda: sum(self._next.values()))
        except BrokerAway:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop following."""
        self._stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    async def ended(self) -> None:
        """Wait until the topic cannot be followed any more, see `SideTask.ended`. Raises FollowingEnded."""
        if self._ended is not None:
            await asyncio.shield(self._ended)

    @property
    def alive(self) -> bool:
        """True if the topic is still followed, and the thread made a round within a minute."""
        return not self._has_failed and self._clock.monotonic() - self._beat_at < STUCK_SECONDS

    def reasons(self) -> list[str]:
        """Return the reasons why the known facts may be stale; an empty list if the facts are fresh."""
        if self._has_failed:
            return [f"the topic {self._topic} is not followed any more"]
        age = self._clock.monotonic() - self._known_at
        return [f"the topic {self._topic} could not be read for {age:.0f} s"] if age > SILENT_SECONDS else []

    # -- on the event loop ---------------------------------------------------------------------------------------------

    def _take_in(self, facts: Sequence[tuple[bytes | None, bytes | None]]) -> None:
        if self._has_failed:
            return
        try:
            for key, value in facts:
                self._apply(key, value)
        except Exception as error:
            self._end_with(error)

    def _end_with(self, error: BaseException) -> None:
        """Stop following, and make `ended` raise, because a process must not act on stale facts."""
        self._stopping.set()
        if self._ended is None or self._ended.done():
            return
        away = isinstance(error, _TooLongAway)
        log.error(
            "A topic cannot be followed any more; ending the process.",
            action="following-ended",
            topic=self._topic,
            exc_info=None if away else error,
        )
        why = f"no news for more than {STALE_SECONDS / 3600:.0f} hours" if away else type(error).__name__
        self._ended.set_exception(
            FollowingEnded(f"the topic {self._topic} cannot be followed any more ({why}); restart this process")
        )
        self._ended.exception()  # avoids asyncio's warning "exception was never retrieved" during the start

    @property
    def _has_failed(self) -> bool:
        return self._ended is not None and self._ended.done()

    # -- on threads of its own -----------------------------------------------------------------------------------------

    def _ends(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return two offsets for each partition: the end to read to, and the start of reading.

        The end is behind uncommitted records too, so records that were committed behind an open transaction are also
        read.
        """
        consumer = self._consumer("read_uncommitted")
        answer, leader = (Deadline.after(self._clock, each) for each in (_ASK_SECONDS, START_SECONDS))
        try:
            while True:
                try:
                    numbers = consumer.list_topics(self._topic, timeout=_ASK_SECONDS).topics[self._topic].partitions
                    ends = self._ask_ends(consumer, numbers, _ASK_SECONDS)
                    return ends, self._ask_starts(consumer, ends)
                except KafkaException as error:
                    # A busy broker may take longer than an answer to lead a partition that is new or moves.
                    deadline = leader if error.args[0].code() in _WITHOUT_LEADER else answer
                    if deadline.passed or self._stopping.is_set():
                        why = f"Kafka does not give the end of the topic {self._topic} ({error.args[0].name()})"
                        raise BrokerAway(why) from None
                    self._clock.sleep(_ASK_AGAIN_SECONDS)
        finally:
            consumer.close()

    def _ask_ends(self, consumer: Consumer, numbers: Iterable[int], seconds: float) -> dict[int, int]:
        asked = [TopicPartition(self._topic, number) for number in numbers]
        return {each.partition: consumer.get_watermark_offsets(each, timeout=seconds)[1] for each in asked}

    def _ask_starts(self, consumer: Consumer, ends: dict[int, int]) -> dict[int, int]:
        """Map each partition to the offset of its first record younger than `kept_ms`. Raises KafkaException."""
        if self._kept_ms is None:
            return dict.fromkeys(ends, OFFSET_BEGINNING)
        since_ms = max(0, round(self._clock.time() * 1000) - self._kept_ms)
        asked = [TopicPartition(self._topic, number, since_ms) for number in ends]
        found = consumer.offsets_for_times(asked, timeout=_ASK_SECONDS)
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
        return {each.partition: each.offset if each.offset >= 0 else ends[each.partition] for each in found}

    def _consumer(self, isolation: str) -> Consumer:
        return Consumer(
            {
                "fetch.wait.max.ms": 100,
                **client_config(self._kafka),
                "group.id": "follower",  # the client requires an id, but joins no group and commits no offset
                "enable.auto.commit": False,
                "isolation.level": isolation,
                "auto.offset.reset": "earliest",  # read a topic that was created again from its first record
                "enable.partition.eof": True,
            }
        )

    def _follow(
        self,
        loop: asyncio.AbstractEventLoop,
        starts: dict[int, int],
        ends: dict[int, int],
        caught_up: Callable[[], None],
    ) -> None:
        try:
            consumer = self._consumer("read_committed")
            try:
                consumer.assign([TopicPartition(self._topic, number, start) for number, start in starts.items()])
                self._read_on(consumer, loop, ends, caught_up)
            finally:
                consumer.close()
        except BaseException as error:
            self._on_loop(loop, self._end_with, error)

    def _read_on(
        self, consumer: Consumer, loop: asyncio.AbstractEventLoop, ends: dict[int, int], caught_up: Callable[[], None]
    ) -> None:
        started = False
        while not self._stopping.is_set():
            facts = self._some(consumer)
            if facts:
                self._on_loop(loop, self._take_in, facts)
            if not started and self._has_reached(ends):
                started = True
                self._on_loop(loop, caught_up)
            self._beat()
            ends = self._look(consumer, ends)

    def _some(self, consumer: Consumer) -> list[tuple[bytes | None, bytes | None]]:
        """Return the keys and values of new records."""
        facts: list[tuple[bytes | None, bytes | None]] = []
        for message in consumer.consume(_BATCH, _POLL_SECONDS):
            error = message.error()
            number, offset = message.partition() or 0, message.offset() or 0
            if error is None:
                facts.append((message.key(), message.value()))
                self._next[number] = offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                self._next[number] = offset  # the end also lies behind markers and aborted records
            elif error.fatal():
                raise KafkaException(error)
            # Other errors mean that the broker is away; the client reconnects by itself.
        return facts

    def _has_reached(self, ends: dict[int, int]) -> bool:
        return all(self._next.get(number, 0) >= end for number, end in ends.items())

    def _look(self, consumer: Consumer, ends: dict[int, int]) -> dict[int, int]:
        """Update the time at which all facts were known, and return the ends to read to.

        If the former ends are reached, the method asks Kafka for new ends.
        """
        now = self._clock.monotonic()
        if self._has_reached(ends):
            self._known_at = max(self._known_at, self._looked_at)
        if now - self._known_at > STALE_SECONDS:
            raise _TooLongAway
        if now - self._looked_at < _LOOK_SECONDS or not self._has_reached(ends):
            return ends
        try:
            found = self._ask_ends(consumer, ends, _ANSWER_SECONDS)
        except KafkaException:
            return ends
        self._looked_at = now
        return found

    def _beat(self) -> None:
        self._beat_at = self._clock.monotonic()

    def _on_loop(self, loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(call, *args)
