"""How parties share a stage's window. `Sharing` is the seam; without it no records are told apart.

The words:

- *party*: the tenant or destination that a record counts for. Where several wait, each has an equal part of the window.
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
    """How the records of a stage are told apart, and the outputs of a deferral."""

    @property
    def later_share(self) -> float:
        """The least part of the window's places that go to the later place while both it and the rest have records."""
        ...

    def party(self, headers: Headers | None) -> bytes:
        """Return the party of a record with these headers.

        Called on the Kafka thread for each record, also while looking ahead: must be cheap, and must not raise.
        """
        ...

    def is_later(self, topic: str) -> bool:
        """Return whether a topic is the later place."""
        ...

    def defer(self, record: Record) -> Sequence[Output]:
        """Return the outputs for a record beyond its party's share: the record in the later place, or its result.

        Called on the event loop. An exception is a defect: the record goes to `Handler.give_up`.
        """
        ...
