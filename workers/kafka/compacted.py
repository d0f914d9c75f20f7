"""Compacted topics that a process reads to their ends at the start, and follows from then on, with one client.

The processes of a fleet share a few facts through compacted topics, without a database. The last record of a key is the
valid one, and a record without a value deletes the fact. Every process reads each topic whole, without a consumer
group.

While the broker is away, the process goes on with the known facts, because without Kafka no jobs are settled anyway.
`reasons` reports the age of the facts. Once the broker is back, reading goes on from the last offset. But Kafka keeps a
deletion for a day only, so after half a day without reading the process may hold deleted facts. The process then ends,
and a new process reads the topics from the beginning. The process also ends if an `apply` raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
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

Fact = tuple[bytes | None, bytes | None]
"""A record's key and value; the value None deletes the fact."""
Apply = Callable[[bytes | None, bytes | None], None]
"""Applies a `Fact`. An exception ends the following of all topics."""

log = get_logger()


class FollowingEnded(ProcessError):  # noqa: N818 - it names what happened
    """A compacted topic can no longer be followed."""


class _TooLongAway(Exception):  # noqa: N818 - private, becomes FollowingEnded
    """The broker was away for so long that this process may have missed the deletion of a fact."""


@dataclass(slots=True, eq=False)
class _Topic:
    """A topic and how far it is read. Only the follower's thread changes it once it is followed."""

    name: str
    apply: Apply
    ends: dict[int, int]
    """The offset to read to, by partition: the topic's end at the last look."""
    known_at: float
    """The monotonic time at which all of the topic's facts were known."""
    looked_at: float
    caught_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set on the event loop once every record that was there at the start is applied."""
    is_started: bool = False
    next: dict[int, int] = field(default_factory=dict)
    """The next offset to read, by partition."""

    @property
    def has_reached_ends(self) -> bool:
        return all(self.next.get(number, 0) >= end for number, end in self.ends.items())


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


class Follower(SideTask):
    """Follows compacted topics on one thread, and applies their committed records on the event loop."""

    def __init__(self, kafka: KafkaSettings, clock: Clock) -> None:
        self._kafka = kafka
        self._clock = clock
        self._stopping = Event()
        self._thread: Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._topics: dict[str, _Topic] = {}
        self._new: SimpleQueue[tuple[_Topic, dict[int, int]]] = SimpleQueue()
        """Topics for the thread to begin with, each with the offset of its first record to read, by partition."""
        self._beat_at = clock.monotonic()

    async def follow(self, topic: str, apply: Apply, kept_ms: int | None = None) -> None:
        """Follow a topic: call `apply` for each record, and return when all present records are applied.

        Records that were older than `kept_ms` at the start, by their timestamps, are skipped, because these facts have
        expired. Raises ProcessError: NoSuchTopic, BrokerAway if no record came for START_SECONDS, or FollowingEnded.
        """
        await topic_ids(self._kafka, [topic])
        log.info("Reading a topic to its end.", action="topic-reading", topic=topic)
        began, loop = self._clock.monotonic(), asyncio.get_running_loop()
        ends, starts = await asyncio.to_thread(self._ends, topic, kept_ms)
        followed = self._topics[topic] = _Topic(topic, apply, ends, began, began)
        self._new.put((followed, starts))
        if self._thread is None:
            self._ended, self._beat_at = loop.create_future(), self._clock.monotonic()
            self._thread = Thread(target=self._work, args=(loop,), name="follow-topics", daemon=True)
            self._thread.start()
        try:
            await until_caught_up(topic, followed.caught_up.wait(), self.ended(), lambda: sum(followed.next.values()))
        except BrokerAway:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop following all topics."""
        self._stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    async def ended(self) -> None:
        """Wait until a topic cannot be followed any more, see `SideTask.ended`. Raises FollowingEnded."""
        if self._ended is not None:
            await asyncio.shield(self._ended)

    @property
    def alive(self) -> bool:
        """True if the topics are still followed, and the thread made a round within a minute."""
        return not self._has_failed and self._clock.monotonic() - self._beat_at < STUCK_SECONDS

    def reasons(self) -> list[str]:
        """Return the reasons why the known facts may be stale; an empty list if the facts are fresh."""
        if self._has_failed:
            return [f"the topic {name} is not followed any more" for name in self._topics]
        ages = {topic.name: self._clock.monotonic() - topic.known_at for topic in self._topics.values()}
        old = {name: age for name, age in ages.items() if age > SILENT_SECONDS}
        return [f"the topic {name} could not be read for {age:.0f} s" for name, age in old.items()]

    # -- on the event loop ---------------------------------------------------------------------------------------------

    def _take_in(self, topic: _Topic, facts: Sequence[Fact]) -> None:
        if self._has_failed:
            return
        try:
            for key, value in facts:
                topic.apply(key, value)
        except Exception as error:
            self._end_with(error, topic.name)

    def _end_with(self, error: BaseException, topic: str) -> None:
        """Stop following, and make `ended` raise, because a process must not act on stale facts."""
        self._stopping.set()
        if self._ended is None or self._ended.done():
            return
        away = isinstance(error, _TooLongAway)
        log.error(
            "A topic cannot be followed any more; ending the process.",
            action="following-ended",
            topic=topic,
            exc_info=None if away else error,
        )
        why = f"no news for more than {STALE_SECONDS / 3600:.0f} hours" if away else type(error).__name__
        self._ended.set_exception(
            FollowingEnded(f"the topic {topic} cannot be followed any more ({why}); restart this process")
        )
        self._ended.exception()  # avoids asyncio's warning "exception was never retrieved" during the start

    @property
    def _has_failed(self) -> bool:
        return self._ended is not None and self._ended.done()

    # -- on threads of its own -----------------------------------------------------------------------------------------

    def _ends(self, topic: str, kept_ms: int | None) -> tuple[dict[int, int], dict[int, int]]:
        """Return two offsets for each partition: the end to read to, and the start of reading.

        The end is behind uncommitted records too, so records that were committed behind an open transaction are also
        read.
        """
        consumer = self._consumer("read_uncommitted")
        answer, leader = (Deadline.after(self._clock, each) for each in (_ASK_SECONDS, START_SECONDS))
        try:
            while True:
                try:
                    numbers = consumer.list_topics(topic, timeout=_ASK_SECONDS).topics[topic].partitions
                    ends = self._ask_ends(consumer, topic, numbers, _ASK_SECONDS)
                    return ends, self._ask_starts(consumer, topic, ends, kept_ms)
                except KafkaException as error:
                    # A busy broker may take longer than an answer to lead a partition that is new or moves.
                    deadline = leader if error.args[0].code() in _WITHOUT_LEADER else answer
                    if deadline.passed or self._stopping.is_set():
                        why = f"Kafka does not give the end of the topic {topic} ({error.args[0].name()})"
                        raise BrokerAway(why) from None
                    self._clock.sleep(_ASK_AGAIN_SECONDS)
        finally:
            consumer.close()

    def _ask_ends(self, consumer: Consumer, topic: str, numbers: Iterable[int], seconds: float) -> dict[int, int]:
        asked = [TopicPartition(topic, number) for number in numbers]
        return {each.partition: consumer.get_watermark_offsets(each, timeout=seconds)[1] for each in asked}

    def _ask_starts(self, consumer: Consumer, topic: str, ends: dict[int, int], kept_ms: int | None) -> dict[int, int]:
        """Map each partition to the offset of its first record younger than `kept_ms`. Raises KafkaException."""
        if kept_ms is None:
            return dict.fromkeys(ends, OFFSET_BEGINNING)
        since_ms = max(0, round(self._clock.time() * 1000) - kept_ms)
        asked = [TopicPartition(topic, number, since_ms) for number in ends]
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

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        topic = next(iter(self._topics))
        try:
            consumer = self._consumer("read_committed")
            try:
                while not self._stopping.is_set():
                    self._begin_new(consumer)
                    self._read_some(consumer, loop)
                    for followed in list(self._topics.values()):
                        topic, self._beat_at = followed.name, self._clock.monotonic()
                        self._look(consumer, followed)
            finally:
                consumer.close()
        except BaseException as error:
            self._on_loop(loop, self._end_with, error, topic)

    def _begin_new(self, consumer: Consumer) -> None:
        while True:
            try:
                followed, starts = self._new.get_nowait()
            except Empty:
                return
            consumer.incremental_assign([TopicPartition(followed.name, *start) for start in starts.items()])

    def _read_some(self, consumer: Consumer, loop: asyncio.AbstractEventLoop) -> None:
        """Read new records, hand them to the event loop, and tell it which topics are read to their ends."""
        facts: dict[str, list[Fact]] = {}
        for message in consumer.consume(_BATCH, _POLL_SECONDS):
            error, name = message.error(), message.topic() or ""
            number, offset = message.partition() or 0, message.offset() or 0
            if error is None:
                facts.setdefault(name, []).append((message.key(), message.value()))
                self._topics[name].next[number] = offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                self._topics[name].next[number] = offset  # the end also lies behind markers and aborted records
            elif error.fatal():
                raise KafkaException(error)
            # Other errors mean that the broker is away; the client reconnects by itself.
        for name, several in facts.items():
            self._on_loop(loop, self._take_in, self._topics[name], several)
        for followed in list(self._topics.values()):
            if not followed.is_started and followed.has_reached_ends:
                followed.is_started = True
                self._on_loop(loop, followed.caught_up.set)

    def _look(self, consumer: Consumer, topic: _Topic) -> None:
        """Update the time at which all facts were known. If the former ends are reached, ask Kafka for new ends."""
        now, is_current = self._clock.monotonic(), topic.has_reached_ends
        if is_current:
            topic.known_at = max(topic.known_at, topic.looked_at)
        if now - topic.known_at > STALE_SECONDS:
            raise _TooLongAway
        if is_current and now - topic.looked_at >= _LOOK_SECONDS:
            try:
                topic.ends = self._ask_ends(consumer, topic.name, topic.ends, _ANSWER_SECONDS)
            except KafkaException:
                return
            topic.looked_at = now

    def _on_loop(self, loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(call, *args)
