"""Parking: the share of the later place, and the spare place, which is served last."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.unit.test_parking import A, B, Sender, always, park, partition, shared
from workers.stage.party_queue import Parked
from workers.stage.sharing import Place
from workers.stage.window import LEAST_PARKED, MOST_AT_ONCE, Window


def both(share: float, first: int = 400, later: int = 400) -> Window:
    window = shared(later_share=share)
    park(window, Sender(partition(0)).send(first), A)
    park(window, Sender(partition(0, place=Place.LATER)).send(later), A)
    return window


def later_ones(drawn: list[Parked]) -> int:
    return sum(where.place is Place.LATER for where, _ in drawn)


@pytest.mark.parametrize("room", [1, 7, 100])
@pytest.mark.parametrize(("share", "expected"), [(0.1, 20), (0.25, 50)])
def test_the_later_place_has_its_share_whether_places_become_free_one_by_one_or_together(
    room: int, share: float, expected: int
) -> None:
    window = both(share)
    drawn: list[Parked] = []
    while len(drawn) < 200:
        drawn += window.draw(min(room, 200 - len(drawn)), always)
    assert abs(later_ones(drawn) - expected) <= 1


def test_each_lot_gets_every_place_while_the_other_one_is_empty() -> None:
    assert later_ones(both(0.1, first=0).draw(100, always)) == 100
    assert later_ones(both(0.1, later=0).draw(100, always)) == 0
    assert later_ones(both(0.1, first=30).draw(100, always)) == 70


def test_the_later_place_saves_up_nothing_while_it_has_no_records() -> None:
    window = both(0.1, later=0)
    for _ in range(200):
        window.draw(1, always)
    park(window, Sender(partition(0, place=Place.LATER)).send(50), A)
    assert later_ones(window.draw(50, always)) == 5


def test_a_full_lot_stops_no_partition_of_the_other_lot() -> None:
    window, first, later = shared(), partition(0), partition(0, place=Place.LATER)
    park(window, Sender(first).send(LEAST_PARKED), A)
    assert (window.wants_pause(first), window.wants_pause(later)) == (True, False)
    assert window.batch == MOST_AT_ONCE


# -- the spare place -----------------------------------------------------------------------------------------------


def test_the_spare_place_is_served_only_while_nothing_waits_elsewhere() -> None:
    window = both(0.1, first=5, later=5)
    park(window, Sender(partition(0, place=Place.SPARE)).send(50), A)
    drawn = window.draw(10, always)
    assert Counter(where.place for where, _ in drawn) == {Place.FIRST: 5, Place.LATER: 5}
    assert {where.place for where, _ in window.draw(7, always)} == {Place.SPARE}
    held = partition(3)
    park(window, Sender(held).send(1), B)
    assert window.draw(5, lambda where, _, most: most if where is not held else 0) == []


def test_a_flood_in_the_spare_place_stops_no_other_place_and_is_never_deferred() -> None:
    window, first, spare = shared(), partition(), partition(place=Place.SPARE)
    for party in (A, B):
        assert park(window, Sender(spare).send(LEAST_PARKED), party) == []
    assert (window.wants_pause(first), window.wants_pause(spare)) == (False, True)
