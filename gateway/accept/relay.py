"""The relay: puts the outbox's rows on Kafka in the order of their numbers, each exactly once.

    rows from the position on ──► one Kafka transaction: their records + the new position ──► delete the rows

The writer hands over the rows that this process commits. A row is taken from memory only if its number is exactly the
position's: another gateway's rows below it are in the table only, and the new position would pass them over.

A relay that dies between two of these steps may leave rows whose records are on Kafka; the next relay reads the
position and deletes those rows. A relay that resumes after a pause is fenced by Kafka. Rows are accepted while Kafka is
away.

A transaction's rows are deleted only after a later transaction is committed, because Kafka confirms a transaction
before all of its markers are written. If a cluster's only broker is killed in between, the confirmed records and
position may be undone (see `workers.stage.settler`). A later transaction begins only after these markers are
written.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from threading import Lock
from types import SimpleNamespace
from typing import Any

from confluent_kafka import KafkaException
from sqlalchemy import Connection, select

from gateway.accept.outbox import unpacked
from gateway.accept.outlet import RecordOutlet
from gateway.accept.position import adopt, forget
from gateway.accept.side_thread import SideThread, Trouble
from gateway.store.engine import Fresh
from gateway.store.meta import set_value, store_id, value_of
from gateway.store.store import Store, StoreAway
from gateway.store.tables import meta, outbox
from schemas.settings import KafkaSettings
from schemas.topics import TRACEPARENT
from schemas.trust import TrustSecrets
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from telemetry.traces import Kind, collecting, parse_traceparent, past_span

MOST_ROWS = 1_000
MOST_BYTES = 4 * 1024 * 1024
POLL_SECONDS = 0.25
"""The relay looks for other processes' rows after this many seconds; this process's own commits wake the relay."""
KEEP_SECONDS = 3_600.0
"""An idle relay commits its position again after this many seconds, so that Kafka does not forget the position."""
SILENT_SECONDS = 5.0
"""`/readyz` fails once all calls of the relay to Kafka and the store have failed for this time."""
STANDBY = "Another process puts accepted records on Kafka; waiting."

log = get_logger()


class Relay(SideThread):
    """A `SideTask`. Of several gateways' relays, one works at a time, and the others wait until that one ends."""

    def __init__(
        self, store: Store, kafka: KafkaSettings, clock: Clock, metrics: Metrics, trust: TrustSecrets | None = None
    ) -> None:
        """If `trust` is given, the relay signs the tenant of each job."""
        super().__init__("relay", clock)
        self._trust = trust
        self._store = store
        self._kafka = kafka
        self._metrics = metrics
        self._lease = Lease(store, clock)
        self._accepted = threading.Event()
        self._fresh = FreshRows()
        self._forgetting: Future[None] | None = None
        self._forgotten = 0
        """The last submitted deletion deletes the rows below this position."""
        self._trouble = Trouble(clock, SILENT_SECONDS)
        self._halvings = 0
        """The number of times that a transaction's bounds are halved. A failure raises the number, and a success lowers
        it."""
        self._committed_at = 0.0
        store.on_commit(self._committed)

    def reasons(self) -> list[str]:
        """Return the reason why accepted records do not reach Kafka."""
        problem = self._trouble.lasting
        return [] if problem is None else [f"accepted records wait, since they do not reach Kafka ({problem})"]

    def _wake(self) -> None:
        self._accepted.set()

    def _committed(self, rows: Fresh) -> None:
        self._fresh.add(rows)
        self._accepted.set()

    def _run(self) -> None:
        outlet: RecordOutlet | None = None
        while self._goes_on():
            try:
                if self._lease.held():
                    store = self._store.read_now(store_id)
                    outlet = outlet or RecordOutlet(self._kafka, store, self._clock, self._trust)
                    self._relay(outlet)
                else:
                    if self._trouble.succeeded():
                        log.info(STANDBY, action="relay-standby")
                    self._rest(BEAT_SECONDS)
            except (KafkaException, StoreAway) as error:
                self._failed(error)
        if outlet is not None:
            outlet.close()
        with suppress(StoreAway):  # another relay then takes over once the lease is stale
            self._lease.leave()

    def _relay(self, outlet: RecordOutlet) -> None:
        """Put rows on Kafka until the stop, or until another relay has taken over.

        Raises KafkaException and StoreAway.
        """
        found = outlet.open()
        position, _ = self._store.write_now(lambda connection: adopt(connection, found))
        safe, self._committed_at = position, self._clock.monotonic()
        log.info("This process puts accepted records on Kafka.", action="relay-leading", position=position)
        while self._goes_on():
            if not self._lease.kept():
                log.info(STANDBY, action="relay-standby")
                return
            self._forget(safe)
            self._accepted.clear()
            most, room = (max(1, bound >> self._halvings) for bound in (MOST_ROWS, MOST_BYTES))
            rows = self._fresh.take(position, most, room) or self._store.read_now(
                partial(_rows, position=position, most=most, room=room)
            )
            if rows:
                began = self._clock.time()
                outlet.put(rows, rows[-1].number + 1)
                safe, position = position, rows[-1].number + 1
                self._relayed(rows, began)
            elif safe < position or self._clock.monotonic() - self._committed_at > KEEP_SECONDS:
                outlet.put((), position)
                safe, self._committed_at = position, self._clock.monotonic()
            else:
                self._succeeded()
                outlet.listen()
                self._accepted.wait(POLL_SECONDS)

    def _relayed(self, rows: Sequence[Any], began: float) -> None:
        """Record in metrics and traces that a transaction, which began at the Unix time `began`, committed rows."""
        if collecting():
            _trace(rows, (began, self._clock.time()))
        self._metrics.relayed_records.inc(len(rows))
        self._committed_at = self._clock.monotonic()
        self._halvings = max(0, self._halvings - 1)
        self._succeeded()

    def _forget(self, position: int) -> None:
        """Delete the rows below the position, and do not wait for the deletion.

        If a crash prevents the deletion, the next relay reads the position from Kafka and deletes the rows.
        """
        last = self._forgetting
        if last is not None and not last.done():
            return
        if position == self._forgotten and (last is None or last.exception() is None):
            return
        self._forgotten = position
        self._forgetting = self._store.submit(lambda connection: forget(connection, position))

    def _succeeded(self) -> None:
        if self._trouble.succeeded():
            log.info("Accepted records reach Kafka again.", action="relay-repaired")

    def _failed(self, error: KafkaException | StoreAway) -> None:
        seconds = self._trouble.failed(error)
        detail = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        log.warning(
            "Accepted records do not reach Kafka; they stay in the outbox, and the relay starts again.",
            action="relay-failed",
            error=self._trouble.problem,
            detail=detail,
        )
        self._halvings = min(self._halvings + 1, 10)
        self._rest(seconds)


def _rows(connection: Connection, position: int, most: int, room: int) -> Sequence[Any]:
    """Return the next rows of the table, at most `most`, and `room` bytes if there is more than one row."""
    number = outbox.c.number
    sizes = select(number, outbox.c.size).where(number >= position).order_by(number).limit(most)
    last: int | None = None
    for found in connection.execute(sizes):
        room -= found.size
        if last is not None and room < 0:
            break
        last = found.number
    if last is None:
        return ()
    return connection.execute(select(outbox).where(number >= position, number <= last).order_by(number)).all()


class FreshRows:
    """Rows of the outbox that this process has committed. The writer's thread adds rows, and the relay's takes them."""

    def __init__(self) -> None:
        self._rows: deque[Any] = deque()
        self._bytes = 0
        self._lock = Lock()

    def add(self, rows: Fresh) -> None:
        """Keep rows in the order of their numbers. If they become too many, drop all: the table has them."""
        with self._lock:
            self._rows.extend(SimpleNamespace(**row) for row in rows)
            self._bytes += sum(row["size"] for row in rows)
            if len(self._rows) > MOST_ROWS or self._bytes > MOST_BYTES:
                self._rows.clear()
                self._bytes = 0

    def take(self, position: int, most: int, room: int) -> Sequence[Any]:
        """Return rows with consecutive numbers from the position on, within the bounds; drop the rows below it."""
        taken: list[Any] = []
        with self._lock:
            while self._rows and len(taken) < most:
                row = self._rows[0]
                if row.number > position or (row.number == position and taken and row.size > room):
                    break
                self._bytes -= self._rows.popleft().size
                if row.number == position:
                    taken.append(row)
                    position, room = position + 1, room - row.size
        return taken


def _trace(rows: Sequence[Any], seconds: tuple[float, float]) -> None:
    """Export a span for each row with a trace. `seconds` has the Unix times of the transaction's start and end."""
    for row in rows:
        said = dict(unpacked(row.headers)).get(TRACEPARENT, b"").decode("latin-1")
        if (parent := parse_traceparent(said)) is not None:
            past_span("relay", seconds, parent, {"messaging.destination.name": row.topic}, kind=Kind.PRODUCER)


BEAT_SECONDS = 2.0
STALE_SECONDS = 8.0
_RELAY = "relay"


class Lease:
    """One relay's view of the lease by which only one of several gateways' relays works at a time.

    If two relays nevertheless work at the same time, Kafka fences the older one. The holder changes its row of `meta`
    every BEAT_SECONDS. Another relay takes over if the holder has left, or if, by the other's clock, the row has not
    changed for STALE_SECONDS. A relay that starts takes over at once, because its predecessor has usually just ended.
    Methods raise StoreAway. A single thread calls all methods.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._id = uuid.uuid4().hex
        self._beats = 0
        self._held: bool | None = None
        """The last answer of `held`; None before the first."""
        self._asked_at = clock.monotonic()
        self._seen: tuple[str | None, float] = ("", clock.monotonic())

    def held(self) -> bool:
        """Renew the lease, or take it if it is free; return whether this relay has it."""
        self._asked_at = self._clock.monotonic()
        self._held = self._store.write_now(self._renew)
        return self._held

    def kept(self) -> bool:
        """Return the same as `held`, and ask the store only if BEAT_SECONDS have passed since the last question."""
        return self.held() if self._clock.monotonic() - self._asked_at >= BEAT_SECONDS else bool(self._held)

    def leave(self) -> None:
        """Let another relay take over at once."""
        mine = meta.c.name == _RELAY, meta.c.value.startswith(self._id)
        self._store.write_now(lambda connection: connection.execute(meta.delete().where(*mine)).rowcount)

    def _renew(self, connection: Connection) -> bool:
        found, now = value_of(connection, _RELAY), self._clock.monotonic()
        if found != self._seen[0]:
            self._seen = found, now
        others = self._held is not None and found is not None and not found.startswith(self._id)
        if others and now - self._seen[1] < STALE_SECONDS:
            return False
        self._beats += 1
        set_value(connection, _RELAY, f"{self._id}:{self._beats}")
        return True
