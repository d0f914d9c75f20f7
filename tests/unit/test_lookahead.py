"""The stage's lookahead: its time, and the party that it skips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from telemetry.hand_clock import HandClock
from workers.stage.intake import PartitionId
from workers.stage.lookahead import PATIENCE_SECONDS, Lookahead
from workers.stage.parking import TIGHT_SECONDS, Lot
from workers.stage.partition import Partition
from workers.stage.progress import Progress
from workers.stage.record import Record
from workers.stage.sharing import Party


class Scout:
    """A scout that records its aims."""

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


class Walk:
    """A lot of ten places that tenant A fills, and the lookahead that starts once that has lasted."""

    def __init__(self) -> None:
        self.clock, self.lot, self.partition = HandClock(), Lot(10, 10**9), Partition("requests", 0, 1, 0.0)
        self.scout = Scout()
        looking: Any = self.scout
        self.foresight = Lookahead(looking, self.clock)
        self.partition.open(Progress(0), 0)
        self.park(10, b"A")
        self.look()
        self.clock.now += TIGHT_SECONDS
        self.look()
        self.clock.now += PATIENCE_SECONDS

    def park(self, count: int, party: bytes) -> None:
        for offset in range(count):
            self.lot.add(self.partition, Record("requests", 0, offset, b""), party)

    def drain(self) -> None:
        self.lot.draw(10, lambda _, records, most: most)

    def look(self) -> None:
        self.lot.look(self.clock.monotonic())
        self.foresight.look(self.lot, [self.partition])

    @property
    def familiar(self) -> list[Party]:
        return [party for _, party in self.scout.aims]


def test_it_looks_past_who_fills_the_lot_and_past_nobody_once_the_lot_is_drained() -> None:
    walk = Walk()
    walk.look()
    assert walk.scout.aims == [({("requests", 0): 0}, b"A")]
    walk.drain()
    walk.look()
    walk.park(1, b"B")
    walk.look()
    assert walk.familiar == [b"A"], "neither nobody nor a passer-by is who fills the lot"


@pytest.mark.parametrize("passer_by", [None, b"B"])
def test_a_lot_that_one_round_empties_is_still_its_fillers(passer_by: bytes | None) -> None:
    """The lot counts as full until the next round begins. Without a familiar party every party is another one. Before,
    a lone tenant was deferred then: 37,356 of its 100,000 jobs in one run."""
    walk = Walk()
    walk.lot.look(walk.clock.monotonic())
    walk.drain()
    if passer_by is not None:
        walk.park(1, passer_by)
    walk.foresight.look(walk.lot, [walk.partition])
    assert walk.lot.full
    assert walk.familiar == [b"A"]
