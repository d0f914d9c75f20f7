"""Keeps this process from adding to the outbox until the next row's number is known, and while the outbox is full."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from gateway.store.errors import StoreAway

OPTION = "postback_hold"


@dataclass(slots=True)
class Hold:
    """The reasons why this process may not add to the outbox, as phrases; None for a reason that does not apply."""

    unknown: str | None = None
    """The reason for which no record may enter the outbox."""
    full: str | None = None
    """The reason for which no job may enter the outbox; records about accepted work still may."""

    @property
    def refusal(self) -> str | None:
        """The reason why no work can be accepted; None if it can."""
        return self.unknown or self.full


def require_no_hold(connection: Connection, *, new_work: bool) -> None:
    """Raise StoreAway if the outbox is on hold in this process."""
    hold: Hold | None = connection.get_execution_options().get(OPTION)
    reason = None if hold is None else hold.refusal if new_work else hold.unknown
    if reason is not None:
        raise StoreAway(reason)
