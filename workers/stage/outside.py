"""Shares of the window for records that may wait for servers outside the fleet, so that no party fills the window.

The handler cannot end such a record before the server answers. A window full of one party's hung records would stop all
other parties. So a quarter of the window is a reserve. When only the reserve is free, a party may begin such a record
only if it runs fewer such records than the window has free places (dynamic thresholds, Choudhury and Hahne 1998).

Many parties with few such records each could still fill the reserve. So all these records together leave half of the
reserve to records that wait for no server. Within this bound, a sole party gets three quarters of the window, and a
party that comes later gets half of the places that are left. Records that wait for no server may take any place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from workers.stage.partition import Partition
from workers.stage.party_queue import Ready
from workers.stage.record import Record
from workers.stage.sharing import Party
from workers.stage.window import Window

KEPT = 4
"""The reserve is one in KEPT places of the window."""


class OutsideTurns:
    """Tells which records may begin in one draw from the window's lots. Only the Kafka thread calls the methods."""

    def __init__(self, window: Window, ready: Ready) -> None:
        """`ready` tells which records may begin if the shares are ignored."""
        self._window = window
        self._ready = ready
        self._kept = window.limits.records // KEPT
        self._free = window.limits.records - window.load.running
        self._left = window.limits.records - self._kept // 2 - window.load.outside.total()
        """The number of free places that are left for records that may wait for servers."""
        self._drawn: Counter[Party] = Counter()

    def ready(self, partition: Partition, records: Sequence[Record], most: int) -> int:
        """Return 1 if the first record may begin now, else 0. After a 1, the lot draws that record at once."""
        if not self._ready(partition, records, min(1, most)):
            return 0
        party = records[0].outside
        if party is not None:
            if not self._may_begin(party):
                self._window.held_back(partition)
                return 0
            self._drawn[party] += 1
            self._left -= 1
        self._free -= 1
        return 1

    def _may_begin(self, party: Party) -> bool:
        held = self._window.load.outside[party] + self._drawn[party]
        return self._left > 0 and (held < min(self._free, self._left) or self._free > self._kept)
