"""The view: follows `model_results` and `callback_attempts`, and writes rows.

Rows and offsets are written in one transaction, by compare-and-set on the offsets. So a view that dies repeats nothing,
and several views of one store count nothing twice. The slower view finds the offsets moved, and continues from the new
offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaException
from sqlalchemy import Connection

from gateway.accept.side_thread import SideThread, Trouble
from gateway.store.store import Store, StoreAway
from gateway.view.offsets import OffsetsMoved, TopicPlace, begin_at, move
from gateway.view.reader import TopicReader
from gateway.view.records import records_of
from gateway.view.waiting import Waiting
from gateway.view.writing import OnResults, write_attempts, write_results
from schemas.settings import KafkaSettings
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics

TOGETHER = 500
"""The maximum number of records that one transaction takes."""
WAIT_SECONDS = 0.25
LOOK_SECONDS = 5.0
"""The time between two checks for new partitions, and for topics that were created again."""
SILENT_SECONDS = 10.0
"""`/readyz` fails once all calls of the view to Kafka and the store have failed for this time."""

log = get_logger()


class TopicView(SideThread):
    """A `SideTask`. `hooks` are called in the transaction of the results, see `OnResults`."""

    def __init__(
        self,
        store: Store,
        kafka: KafkaSettings,
        hooks: Sequence[OnResults],
        waiting: Waiting,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        super().__init__("view", clock)
        self._store = store
        self._kafka = kafka
        self._hooks = hooks
        self._waiting = waiting
        self._metrics = metrics
        metrics.viewed_records.begin()
        self._next: dict[TopicPlace, int] = {}
        self._by_partition: dict[tuple[str, int], TopicPlace] = {}
        self._trouble = Trouble(clock, SILENT_SECONDS)

    def reasons(self) -> list[str]:
        """Return the reason why results are not read."""
        problem = self._trouble.lasting
        return [] if problem is None else [f"results are not read ({problem})"]

    def _run(self) -> None:
        while self._goes_on():
            try:
                self._follow()
            except OffsetsMoved:
                continue  # another view wrote these records first: go on from its offsets
            except (KafkaException, StoreAway) as error:
                self._failed(error)

    def _follow(self) -> None:
        """Read until the stop, or until the topics have changed. Raises KafkaException, StoreAway, OffsetsMoved."""
        topics = self._kafka.topics
        reader = TopicReader(self._kafka, (topics.results, topics.attempts))
        try:
            places = reader.places()
            self._next = self._store.write_now(lambda connection: begin_at(connection, places))
            self._by_partition = {(place.topic, place.partition): place for place in places}
            reader.begin(self._next)
            looked_at = self._clock.monotonic()
            while self._goes_on():
                messages = reader.records(TOGETHER, WAIT_SECONDS)
                if messages:
                    self._take(messages)
                if self._clock.monotonic() - looked_at > LOOK_SECONDS:
                    if reader.places() != places:
                        return
                    looked_at = self._clock.monotonic()
                    self._succeeded()
        finally:
            reader.close()

    def _take(self, messages: Sequence[Any]) -> None:
        """Write records. Raises StoreAway and OffsetsMoved.

        If a defect makes the write of all records fail, each record is written alone. A record that still fails is
        written without a call of the hooks, or else left out, so that the view goes on with all others.
        """
        if self._is_written(messages, self._hooks):
            return
        for message in messages:
            if len(messages) > 1 and self._is_written([message], self._hooks):
                continue
            self._say_at_fault(message)
            if not self._is_written([message], ()):
                self._store.write_now(partial(move, moves=self._moves([message])))
                self._next |= {place: after for place, (_, after) in self._moves([message]).items()}

    def _is_written(self, messages: Sequence[Any], hooks: Sequence[OnResults]) -> bool:
        """Write records; return False if a defect makes the write fail. Raises StoreAway and OffsetsMoved."""
        try:
            self._write(messages, hooks)
        except (StoreAway, OffsetsMoved):
            raise
        except Exception:
            if len(messages) == 1:
                log.exception("A record cannot be written.", action="view-record-failed")
            return False
        self._succeeded()
        return True

    def _say_at_fault(self, message: Any) -> None:
        log.error(
            "A record could not be written with its consequences; leaving the consequences out.",
            action="view-record-failed",
            topic=message.topic(),
            partition=message.partition(),
            offset=message.offset(),
        )

    def _write(self, messages: Sequence[Any], hooks: Sequence[OnResults]) -> None:
        results, attempts = records_of(messages, self._kafka.topics.results)
        moves = self._moves(messages)

        def change(connection: Connection) -> None:
            move(connection, moves)
            write_attempts(connection, attempts)
            stored = write_results(connection, results)
            for hook in hooks if stored else ():
                hook(connection, stored)

        self._store.write_now(change)
        self._next |= {place: after for place, (_, after) in moves.items()}
        unusable = len(messages) - len(results) - len(attempts)
        for kind, count in (("result", len(results)), ("attempt", len(attempts)), ("unusable", unusable)):
            self._metrics.viewed_records.labels(kind).inc(count)
        self._waiting.announce([(each.tenant, each.result.job_id) for each in results])

    def _moves(self, messages: Sequence[Any]) -> dict[TopicPlace, tuple[int, int]]:
        moves: dict[TopicPlace, tuple[int, int]] = {}
        for message in messages:
            place = self._by_partition[message.topic(), message.partition()]
            moves[place] = (self._next[place], message.offset() + 1)
        return moves

    def _succeeded(self) -> None:
        if self._trouble.succeeded():
            log.info("Results are read again.", action="view-repaired")

    def _failed(self, error: KafkaException | StoreAway) -> None:
        seconds = self._trouble.failed(error)
        log.warning("Results are not read; trying again.", action="view-failed", error=self._trouble.problem)
        self._rest(seconds)
