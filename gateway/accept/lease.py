"""The lease by which only one of several gateways' relays works at a time.

If two relays nevertheless work at the same time, Kafka fences the older one.

The holder changes its row of `meta` every BEAT_SECONDS. Another relay takes over if, by its own clock, the row has not
changed for STALE_SECONDS. A relay that starts takes over at once, because its predecessor has usually just ended.
"""

from __future__ import annotations

import uuid

from sqlalchemy import Connection

from gateway.store.meta import set_value, value_of
from gateway.store.store import Store
from gateway.store.tables import meta
from telemetry.clock import Clock

BEAT_SECONDS = 2.0
STALE_SECONDS = 8.0
_RELAY = "relay"


class Lease:
    """One relay's view of the lease. Methods raise StoreAway. A single thread calls all methods."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._id = uuid.uuid4().hex
        self._beats = 0
        self._beat_at = clock.monotonic()
        self._seen: tuple[str | None, float] = ("", clock.monotonic())

    def take(self) -> None:
        """Become the holder."""
        self._store.write_now(lambda connection: set_value(connection, _RELAY, self._next()))
        self._beat_at = self._clock.monotonic()

    def keep(self) -> bool:
        """Renew the lease if BEAT_SECONDS have passed since the last renewal.

        Returns False if another relay has taken over.
        """
        if self._clock.monotonic() - self._beat_at < BEAT_SECONDS:
            return True
        self._beat_at = self._clock.monotonic()
        return self._store.write_now(self._beat)

    def is_mine(self) -> bool:
        """Return whether the store names this relay as the holder."""
        return self._is_mine(self._store.read_now(_holder))

    def is_stale(self) -> bool:
        """Return whether the holder has not changed its row for STALE_SECONDS, or has left."""
        found, now = self._store.read_now(_holder), self._clock.monotonic()
        if found != self._seen[0]:
            self._seen = found, now
        return found is None or now - self._seen[1] >= STALE_SECONDS

    def leave(self) -> None:
        """Let another relay take over at once."""
        self._store.write_now(self._end)

    def _beat(self, connection: Connection) -> bool:
        mine = self._is_mine(value_of(connection, _RELAY))
        if mine:
            set_value(connection, _RELAY, self._next())
        return mine

    def _end(self, connection: Connection) -> None:
        if self._is_mine(value_of(connection, _RELAY)):
            connection.execute(meta.delete().where(meta.c.name == _RELAY))

    def _next(self) -> str:
        self._beats += 1
        return f"{self._id}:{self._beats}"

    def _is_mine(self, holder: str | None) -> bool:
        return holder is not None and holder.startswith(self._id)


def _holder(connection: Connection) -> str | None:
    return value_of(connection, _RELAY)
