"""How a handler holds its stage back. `Backpressure` is the seam; `Unpaced` holds nothing back."""

from __future__ import annotations

from typing import Protocol

from workers.stage.record import Record


class Backpressure(Protocol):
    """The room behind the handler, and the time at which a record is due. The Kafka thread calls all of it."""

    def room(self) -> int:
        """Return how many further records the handler can use now. Called once a round; must be cheap."""
        ...

    def due_ms(self, record: Record) -> int | None:
        """Return the Unix milliseconds before which the record must not be dispatched; None means at once.

        A stage with a `Sharing` never asks: its records wait for their turn only.
        """
        ...

    def paces(self, topic: str) -> bool:
        """Return whether the topic's records have such a time."""
        ...


class Unpaced:
    """A handler that takes whatever the window allows."""

    def room(self) -> int:
        """Return a number that no window reaches."""
        return 1 << 30

    def due_ms(self, record: Record) -> int | None:
        """Return None: every record is due."""
        return None

    def paces(self, topic: str) -> bool:
        """Return False: no topic is paced."""
        return False
