"""Keeps this process from adding to the outbox until the next row's number is known, and while the outbox is full."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock

from sqlalchemy import Connection

from gateway.store.errors import StoreAway

OPTION = "postback_hold"


MOVED = "the database was started again or replaced, and Kafka has not yet shown which accepted records it has"


@dataclass(slots=True)
class Hold:
    """The reasons why this process may not add to the outbox, as phrases; None for a reason that does not apply."""

    unknown: str | None = None
    """The reason for which no record may enter the outbox."""
    full: str | None = None
    """The reason for which no job may enter the outbox; records about accepted work still may."""
    away: str | None = None
    """The reason why the database takes no change now."""
    watched: bool = False
    """True if `Acceptance` releases the hold. Commands have no `Acceptance`."""
    moves: int = 0
    """The number of times that another database server was seen."""
    _lock: Lock = field(default_factory=Lock)

    @property
    def refusal(self) -> str | None:
        """The reason why no work can be accepted; None if it can."""
        return self.unknown or self.away or self.full

    def move(self) -> None:
        """Hold until the position is known again: another server may lack the last commits of the former one."""
        with self._lock:
            self.moves += 1
            if self.watched:
                self.unknown = MOVED

    def release(self, moves: int) -> None:
        """Note that the position is known to the server of this number of moves."""
        with self._lock:
            if moves == self.moves:
                self.unknown = None


def require_no_hold(connection: Connection, *, new_work: bool) -> None:
    """Raise StoreAway if the outbox is on hold in this process."""
    hold: Hold | None = connection.get_execution_options().get(OPTION)
    reason = None if hold is None else (hold.unknown or hold.full) if new_work else hold.unknown
    if reason is not None:
        raise StoreAway(reason)
