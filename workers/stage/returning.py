"""Records that come out of a wait, beside those that are new.

What was put into a tier together is due together, by the hundred, and for each of them the event loop has something to
do. A new record would wait until all of that is done, and it is the one that somebody waits for: what has waited for
seconds loses nothing by some milliseconds more. So it goes a few at a time, and no further few before the loop has
begun those. Where new records never end, it has its share of all that is dispatched.
"""

from __future__ import annotations

FEW = 8
"""Records. The loop begins as many in less than half a millisecond."""
SHARE = 0.2
"""Of all that is dispatched."""


class Returning:
    """How many of them may be dispatched. The Kafka thread owns it."""

    def __init__(self) -> None:
        self._owed = 0.0
        self.held_up = False
        """Whether more of them may be due than were dispatched last: then the next few are to go soon."""

    def room(self, new: int, not_begun: int) -> int:
        """For how many there is room, beside `new` others; these are among those that the loop has not begun."""
        self._owed = min(1.0, self._owed) + new * SHARE / (1 - SHARE)
        return max(FEW - not_begun, int(self._owed))

    def went(self, count: int, room: int) -> None:
        """So many were dispatched, where there was so much room."""
        self._owed = max(0.0, self._owed - count)
        self.held_up = count >= room
