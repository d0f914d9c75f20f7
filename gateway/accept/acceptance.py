"""Decides if this process accepts work now: only while the outbox's position is known and the outbox has room."""

from __future__ import annotations

import asyncio
from functools import partial

from confluent_kafka import KafkaException
from sqlalchemy import Connection

from gateway.accept.position import SKIPPED_AFTER_MOVE, PositionReader, adopt, waiting
from gateway.accept.side_thread import SideThread
from gateway.store.meta import set_value, store_id
from gateway.store.settings import StoreSettings
from gateway.store.store import SILENT, SILENT_SECONDS, Store, StoreAway
from schemas.settings import KafkaSettings
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics

LOOK_SECONDS = 1.0
_PROBE = "probe"
"""The value that is written to see if the store takes changes again."""
_UNKNOWN = "Kafka has not yet shown which accepted records it has"

log = get_logger()


class Acceptance(SideThread):
    """A `SideTask` that releases the outbox when the relay's position is known, and then watches the outbox's size.

    When another database server answers, as after a failover, the outbox is held until the position is known again.
    """

    def __init__(
        self, store: Store, kafka: KafkaSettings, settings: StoreSettings, clock: Clock, metrics: Metrics
    ) -> None:
        super().__init__("acceptance", clock)
        self._store = store
        self._kafka = kafka
        self._settings = settings
        self._metrics = metrics
        self._asks_since: float | None = None
        """The monotonic time at which the present look at the outbox began."""
        store.hold.watched = True
        store.hold.unknown = _UNKNOWN

    def reasons(self) -> list[str]:
        """Return the reason why no work can be accepted now."""
        refusal = self._store.hold.refusal
        return [f"no work is accepted: {refusal}"] if refusal else []

    async def ended(self) -> None:
        """Run until cancelled. The event loop notices if the store hangs, and with it this task's thread."""
        watching = asyncio.create_task(self._watch(), name="store-watch")
        try:
            await super().ended()
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.judge()

    def judge(self) -> None:
        """Refuse work while the store takes no changes."""
        now, hold, since = self._clock.monotonic(), self._store.hold, self._asks_since
        self._store.silent = since is not None and now - since > SILENT_SECONDS
        problem = SILENT if self._store.silent else self._store.problem(now)
        if problem is not None and hold.away is None:
            log.error(
                "The store takes no changes; no work is accepted until it does.", action="store-away", reason=problem
            )
        elif problem is None and hold.away is not None:
            log.info("The store takes changes again.", action="store-back")
        hold.away = problem

    def _run(self) -> None:
        while self._goes_on():
            if self._store.hold.unknown is None or self._released():
                self._look()
            self._rest(LOOK_SECONDS)

    def _released(self) -> bool:
        try:
            reader = PositionReader(self._kafka, self._store.read_now(store_id))
            try:
                position = reader.read()
            finally:
                reader.close()
            moves, position, behind = self._store.write_now(partial(self._adopt, position))
        except (KafkaException, StoreAway):
            return False
        if behind:
            log.warning(
                "The store was behind Kafka, as after its restoration from a backup; its counter is raised.",
                action="store-behind",
                position=position,
            )
        self._store.hold.release(moves)
        return True

    def _adopt(self, position: int | None, connection: Connection) -> tuple[int, int, bool]:
        """Raise the counter, and return the number of moves, the position, and True if the store was behind."""
        moves = self._store.hold.moves
        return moves, *adopt(connection, position, SKIPPED_AFTER_MOVE if moves else 0)

    def _look(self) -> None:
        self._asks_since = began = self._clock.monotonic()
        try:
            rows, size = self._store.read_now(waiting)
            if self._store.problem(began) is not None:
                self._store.write_now(lambda connection: set_value(connection, _PROBE, str(began)))
        except StoreAway:
            return  # each request notices the store's failure itself, and gets status 503
        finally:
            self._asks_since = None
        self._metrics.outbox_records.set(rows)
        full = rows >= self._settings.outbox_rows or size >= self._settings.outbox_bytes
        if full and self._store.hold.full is None:
            log.error(
                "The outbox is full, since Kafka takes no records; no work is accepted until Kafka takes some.",
                action="outbox-full",
                records=rows,
                bytes=size,
            )
        self._store.hold.full = f"{rows} accepted records wait for Kafka" if full else None
