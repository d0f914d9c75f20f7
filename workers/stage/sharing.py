"""Sharing of a stage's window between parties. `Sharing` is the seam; without a `Sharing` all records are alike.

The words:

- *party*: the tenant or destination of a record. If several parties wait, each has an equal part of the window.
- *later place*: topics in which a record may wait longer, so that other records need not wait behind it.
- *deferral*: writing a record beyond its party's share to the later place, untried. A record of the later place is
  never deferred.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from workers.stage.record import Headers, Output, Record

Party = bytes | None
"""None in a stage without a `Sharing`."""


class Sharing(Protocol):
    """Assigns records to parties, and returns the outputs of a deferral."""

    @property
    def later_share(self) -> float:
        """The least share of free places for the later place while records of the later and first places wait."""
        ...

    def party(self, headers: Headers | None) -> bytes:
        """Return the party of a record with these headers.

        The Kafka thread calls this for each record, also while looking ahead: be cheap, and do not raise.
        """
        ...

    def is_later(self, topic: str) -> bool:
        """Return whether `topic` is a topic of the later place."""
        ...

    def defer(self, record: Record) -> Sequence[Output]:
        """Return the outputs for a record beyond its party's share: the record in the later place, or its result.

        The event loop calls this. An exception is a defect: the stage then calls `Handler.give_up`.
        """
        ...
