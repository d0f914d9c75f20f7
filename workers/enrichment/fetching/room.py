"""A bound on the bytes that fetches take together."""

from __future__ import annotations

from dataclasses import dataclass

from workers.enrichment.evidence import Unreadable


@dataclass(slots=True)
class Room:
    """The number of bytes that fetches may still take. `beyond` is the reason that a refusal gives."""

    left: int
    beyond: str

    def take(self, count: int) -> None:
        """Take room for a piece of `count` bytes. Raises Unreadable if fewer are left."""
        self.left -= count
        if self.left < 0:
            raise Unreadable(self.beyond)

    def give_back(self, count: int) -> None:
        """Give back the bytes that a failed try took."""
        self.left += count
