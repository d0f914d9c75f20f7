"""A limit on the bytes that several fetches may receive together."""

from __future__ import annotations

from dataclasses import dataclass

from workers.enrichment.evidence import Unreadable


@dataclass(slots=True)
class Room:
    """The number of bytes that the fetches may still receive. `beyond` is the error's text if they receive more."""

    left: int
    beyond: str

    def take(self, count: int) -> None:
        """Subtract a piece of `count` bytes from the room. Raises Unreadable if fewer bytes are left."""
        self.left -= count
        if self.left < 0:
            raise Unreadable(self.beyond)

    def give_back(self, count: int) -> None:
        """Add the `count` bytes of a failed try to the room again."""
        self.left += count
