"""Decides if this process accepts work now: only while the outbox's position is known and the outbox has room."""

from __future__ import annotations

from confluent_kafka import KafkaException

from gateway.accept.position import PositionReader, adopt, waiting
from gateway.accept.side_thread import SideThread
from gateway.store.meta import store_id
from gateway.store.settings import StoreSettings
from gateway.store.store import Store, StoreAway
from schemas.settings import KafkaSettings
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics

LOOK_SECONDS = 1.0
_UNKNOWN = "Kafka has not yet shown which accepted records it has"

log = get_logger()


class Acceptance(SideThread):
    """A `SideTask` that releases the outbox when the relay's position is known, and then watches the outbox's size."""

    def __init__(
        self, store: Store, kafka: KafkaSettings, settings: StoreSettings, clock: Clock, metrics: Metrics
    ) -> None:
        super().__init__("acceptance", clock)
        self._store = store
        self._kafka = kafka
        self._settings = settings
        self._metrics = metrics
        store.hold.unknown = _UNKNOWN

    def reasons(self) -> list[str]:
        """Return the reason why no work can be accepted now."""
        refusal = self._store.hold.refusal
        return [f"no work is accepted: {refusal}"] if refusal else []

    def _run(self) -> None:
        while self._goes_on() and not self._released():
            self._rest(LOOK_SECONDS)
        while self._goes_on():
            self._look()
            self._rest(LOOK_SECONDS)

    def _released(self) -> bool:
        try:
            reader = PositionReader(self._kafka, self._store.read_now(store_id))
            try:
                position = reader.read()
            finally:
                reader.close()
            position, behind = self._store.write_now(lambda connection: adopt(connection, position))
        except (KafkaException, StoreAway):
            return False
        if behind:
            log.warning(
                "The store was behind Kafka, as after its restoration from a backup; its counter is raised.",
                action="store-behind",
                position=position,
            )
        self._store.hold.unknown = None
        return True

    def _look(self) -> None:
        try:
            rows, size = self._store.read_now(waiting)
        except StoreAway:
            return  # each request notices the store's failure itself, and gets status 503
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
