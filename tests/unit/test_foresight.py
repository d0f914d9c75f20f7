"""When a stage looks ahead, and for whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.clocks import HandClock
from workers.stage.foresight import PATIENCE_SECONDS, Foresight
from workers.stage.intake import PartitionId
from workers.stage.parking import TIGHT_SECONDS, Lot
from workers.stage.partition import Partition
from workers.stage.progress import Progress
from workers.stage.record import Record
from workers.stage.sharing import Party


class Scout:
    """Notes what it is to look for."""

    def __init__(self) -> None:
        self.aims: list[tuple[dict[PartitionId, int], Party]] = []

    def aim(self, places: Mapping[PartitionId, int], familiar: Party) -> None:
        self.aims.append((dict(places), familiar))

    def look(self) -> dict[PartitionId, int]:
        return {}

    def rest(self) -> None:
        pass

    def forget(self) -> None:
        pass


def test_it_looks_past_who_fills_the_lot_and_past_nobody_once_the_lot_is_drained() -> None:
    clock, lot, partition = HandClock(), Lot(10, 10**9), Partition("requests", 0, 1, 0.0)
    scout: Any = Scout()
    foresight = Foresight(scout, clock)
    partition.open(Progress(0), 0)
    for offset in range(10):
        lot.add(partition, Record("requests", 0, offset, b""), b"A")

    def look() -> None:
        lot.look(clock.monotonic())
        foresight.look(lot, [partition])

    look()
    clock.now += TIGHT_SECONDS
    look()
    clock.now += PATIENCE_SECONDS
    look()
    assert scout.aims == [({("requests", 0): 0}, b"A")]
    lot.draw(10, lambda _, records, most: most)
    look()
    lot.add(partition, Record("requests", 0, 10, b""), b"B")
    look()
    assert [familiar for _, familiar in scout.aims] == [b"A"], "neither nobody nor a passer-by is who fills the lot"
