"""Sharing of a stage's window between parties. `Sharing` is the seam; without a `Sharing` all records are alike.

The words:

- *party*: the tenant or destination of a record. If several parties wait, each gets an equal part of the work.
- *place*: where a record waits, by its topic. Records of the first place need not wait behind records of the later
  place, which has a share of the work. A record of the spare place is handled only while no record waits elsewhere.
- *cost*: the work of a record, divided by its party's weight. A party is served next if its records have cost least.
- *deferral*: writing a record of the first place to the later place, untried. Records beyond their party's share are
  deferred, and so is any record that would wait for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

from workers.stage.record import Headers, Output, Record

Party = bytes | None
"""The party of a record; None in a stage without a `Sharing`."""


class Place(IntEnum):
    """Where a record waits."""

    FIRST = 0
    LATER = 1
    SPARE = 2


class Sharing(Protocol):
    """Assigns records to parties, estimates their cost, and returns the outputs of a deferral."""

    @property
    def later_share(self) -> float:
        """The later place's least share of the free room while records wait in both the first and the later place."""
        ...

    def party(self, headers: Headers | None) -> bytes:
        """Return the party of a record with these headers.

        The Kafka thread calls this for each record, so it must be cheap.
        """
        ...

    def cost(self, record: Record) -> float:
        """Return the estimated cost of a record, above 0.

        The Kafka thread calls this for each record, so it must be cheap. The handler sets `Record.spent` to the
        real cost.
        """
        ...

    def urgency(self, record: Record) -> int:
        """Return the record's rank within its party; the lowest is served first. The Kafka thread calls this too."""
        ...

    def may_wait(self, record: Record) -> bool:
        """Return whether the handler may have to wait for a server outside the fleet; see `outside.py`.

        The Kafka thread calls this for each record, so it must be cheap. A wrong True does little harm.
        """
        ...

    def place(self, topic: str) -> Place:
        """Return the place of a topic's records."""
        ...

    def defer(self, record: Record) -> Sequence[Output]:
        """Return the outputs for a record beyond its party's share: the record in the later place, or its result.

        The event loop calls this. An exception is a defect: the stage then calls `Handler.give_up`.
        """
        ...
