"""Back-pressure of a handler on its stage. `Backpressure` is the seam; `Unpaced` never limits the stage."""

from __future__ import annotations

from typing import Protocol

from workers.stage.record import Record


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
