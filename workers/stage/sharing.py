"""Sharing of a stage's window between parties. `Sharing` is the seam; without a `Sharing` all records are alike.

The words:

- *party*: the tenant or destination of a record. If several parties wait, each gets an equal part of the work.
- *place*: where a record waits, by its topic. Records of the first place need not wait behind records of the later
  place, which has a share of the work. A record of the spare place is handled only while no record waits elsewhere.
- *cost*: the work of a record, divided by its party's weight. A party is served next if its records have cost least.
- *deferral*: writing a record of the first place to the later place, untried. Records beyond their party's share are
  deferred, and so is any record that would wait for long.

`Backpressure` is the seam by which a handler slows its stage down; `Unpaced` never limits the stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

from workers.stage.record import Output, Record


class Backpressure(Protocol):
    """Tells a stage how many records its handler has room for, and when each is due.

    The Kafka thread calls the methods.
    """

    def room(self) -> int:
        """Return how many further records the handler can use now.

        The stage calls this every round, so it must be cheap.
        """
        ...

    def due_ms(self, record: Record) -> int | None:
        """Return the Unix milliseconds before which the record must not be dispatched; None means at once.

        A stage with a `Sharing` never calls this method: records of such a stage wait only for their turn.
        """
        ...

    @property
    def paced(self) -> bool:
        """True if the stage's records have due times.

        Hundreds may become due at once, so the event loop begins records in short slices.
        """
        ...


class Unpaced:
    """The back-pressure of a handler that takes as many records as the window allows."""

    paced = False

    def room(self) -> int:
        """Return a number that no window reaches."""
        return 1 << 30

    def due_ms(self, record: Record) -> int | None:
        """Return None: every record is due."""
        return None


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

    def assess(self, record: Record) -> None:
        """Set the record's `party`, `cost`, `urgency` and `outside`.

        The Kafka thread calls this for each record, so it must be cheap. An exception is a defect: the record then
        belongs to no party.
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
