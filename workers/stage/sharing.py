"""Who shares a stage's window with whom. `Sharing` is the seam; without it no records are told apart.

The words:

- *party*: whom a record counts for. Where several wait, none may have more of the window than the others.
- *later place*: topics in which a record may wait longer, so that others need not wait behind it.
- *deferral*: a record beyond its party's share is settled untried into the later place. A record of the later place
  is never deferred: it waits there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from workers.stage.record import Headers, Output, Record

Party = bytes | None
"""None where records are not told apart."""


class Sharing(Protocol):
    """How the records of a stage are told apart, and what a deferral puts out."""

    @property
    def later_share(self) -> float:
        """The least part of the window's places that go to the later place while both it and the rest have records."""
        ...

    def party(self, headers: Headers | None) -> bytes:
        """Whom a record with these headers counts for.

        Called on the Kafka thread for each record, and for each that is only looked at: must be cheap, and not raise.
        """
        ...

    def is_later(self, topic: str) -> bool:
        """Whether a topic is the later place."""
        ...

    def defer(self, record: Record) -> Sequence[Output]:
        """What settles a record beyond its party's share: the record for the later place, or how it ends anyway.

        Called on the event loop. Whatever it raises is a defect: the record goes to `Handler.give_up`.
        """
        ...
