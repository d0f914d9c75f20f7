"""The window: its bounds, and the partitions that it pauses and resumes."""

from __future__ import annotations

import pytest

from workers.stage.parking import AHEAD_RECORDS, PUT_OFF_SHARE, TIGHT_SECONDS, UNIT_BYTES
from workers.stage.partition import Partition, Phase
from workers.stage.progress import MAX_BITMAP, MAX_HOLES, MAX_SPAN, Progress
from workers.stage.record import Record
from workers.stage.sharing import Place
from workers.stage.window import (
    FEW_AT_ONCE,
    HOLES_HIGH,
    HOLES_LOW,
    LEAST_PARKED,
    MOST_AT_ONCE,
    NARROW,
    SPAN_HIGH,
    SPAN_LOW,
    Limits,
    Window,
)


def partition(
    number: int = 0, *, span: int = 0, holes: int = 1, paused: bool = False, phase: Phase = Phase.OPEN
) -> Partition:
    """A partition with the first `holes` records in flight and all others up to `span` settled."""
    made = Partition("requests", number, 1, 0.0)
    made.open(Progress(0), 0)
    if span:
        for offset in range(holes):
            made.ledger.take(offset)
        made.ledger.reach(span)
    made.phase, made.paused = phase, paused
    return made


HOLDER = Partition("requests", 9, 1, 0.0)
"""The partition to which all records of a filled window belong."""


def changes(window: Window, *partitions: Partition) -> tuple[list[Partition], list[Partition]]:
    return window.changes(partitions)


def full(window: Window) -> bool:
    """True if the window takes no more records."""
    return window.wants_pause(partition())


def fill(window: Window, parked: int) -> None:
    """Park or draw records until this number is parked."""
    having = window.first.parked
    for offset in range(having, parked):
        window.park(HOLDER, Record("requests", 0, offset, b""), None)
    window.draw(having - parked, lambda where, records, most: most if where is HOLDER else 0)
    window.look(0.0)
    window.look(TIGHT_SECONDS)


# -- records and bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("records", [1024, 2 * LEAST_PARKED])
def test_as_many_records_are_parked_as_may_run(records: int) -> None:
    window = Window(Limits(records=records))
    fill(window, records - 1)
    assert not full(window)
    fill(window, records)
    assert full(window)


def test_a_narrow_window_parks_enough_to_last_until_a_resumed_partition_delivers() -> None:
    window = Window(Limits(records=8))
    fill(window, LEAST_PARKED - 1)
    assert not full(window)
    fill(window, LEAST_PARKED)
    assert full(window)


def test_a_full_window_takes_records_again_only_when_half_of_the_parked_ones_are_gone() -> None:
    window = Window(Limits(records=1000))
    seen = []
    for parked in (999, 1000, 999, 501, 500, 999):
        fill(window, parked)
        seen.append(full(window))
    assert seen == [False, True, True, True, False, False]


def test_a_window_that_has_no_room_for_a_moment_fetches_nothing_and_pauses_no_partition() -> None:
    window = Window(Limits(records=1000))
    fill(window, 999)
    window.park(HOLDER, Record("requests", 0, 999, b""), None)
    for now, tight, paused in ((5.0, True, False), (5.1, True, False), (5.0 + TIGHT_SECONDS, False, True)):
        window.look(now)
        assert (window.tight, full(window)) == (tight, paused)


def test_a_full_lot_of_several_parties_overflows_in_the_first_place_and_stops_fetching_in_the_later_one() -> None:
    for later in (False, True):
        window, holder = (
            Window(Limits(records=1000), 0.1),
            Partition("requests", 9, 1, 0.0, Place.LATER if later else Place.FIRST),
        )
        for offset in range(1000):
            window.park(holder, Record("requests", 0, offset, b""), (b"A", b"B")[offset % 2])
        window.look(5.0)
        assert window.tight is later


def test_a_window_filled_by_one_record_each_of_many_parties_admits_more_once_half_are_served() -> None:
    window = Window(Limits(records=LEAST_PARKED), later_share=0.1)
    for offset in range(LEAST_PARKED + 1):  # each party has one record, so there is no surplus
        window.park(HOLDER, Record("requests", 0, offset, b""), b"party-%d" % offset)
    assert window.surplus(1000) == []
    window.look(0.0)
    assert window.tight
    window.look(TIGHT_SECONDS)
    assert full(window)
    window.draw(LEAST_PARKED // 2, lambda _, records, most: most)
    window.look(1.0)
    assert full(window)
    window.draw(1, lambda _, records, most: most)
    window.look(1.1)
    assert not full(window)


def test_bytes_fill_the_window_too_and_free_it_at_three_quarters() -> None:
    window = Window(Limits(bytes=1000))
    seen = []
    for size in (999, 1000, 751, 750):
        window.load.bytes = size
        seen.append(full(window))
    assert seen == [False, True, True, False]


def test_a_window_that_was_full_of_records_does_not_open_while_it_is_full_of_bytes() -> None:
    window = Window(Limits(records=1000, bytes=1000))
    fill(window, 1000)
    window.load.bytes = 1000
    assert full(window)
    fill(window, 0)
    assert full(window)
    window.load.bytes = 0
    assert not full(window)


def test_one_record_larger_than_the_window_is_taken_and_does_not_stay_in_the_way() -> None:
    window = Window(Limits(bytes=1000))
    window.load.bytes = 5000
    assert full(window)
    window.load.bytes = 0
    assert not full(window)


def test_at_least_one_record_is_asked_for_and_never_more_than_fit() -> None:
    window = Window(Limits(records=1000))
    asked = []
    for parked in (0, 700, 999, 1000, 5000):
        fill(window, parked)
        asked.append(window.batch)
    assert asked == [1000, 300, 1, 1, 1]


# -- pausing -------------------------------------------------------------------------------------------------------


def test_a_new_partition_is_resumed_even_by_a_full_window_since_its_first_record_opens_it() -> None:
    window = Window(Limits())
    fill(window, 10_000)
    new = partition(phase=Phase.ASSIGNED, paused=True)
    assert changes(window, new) == ([], [new])


def test_a_full_window_pauses_every_open_partition_once_and_resumes_them_together() -> None:
    window, partitions = Window(Limits(records=1000)), [partition(number) for number in range(3)]
    fill(window, 1000)
    assert changes(window, *partitions) == (partitions, [])
    for one in partitions:
        one.paused = True
    assert changes(window, *partitions) == ([], [])
    fill(window, 500)
    assert changes(window, *partitions) == ([], partitions)


def test_a_partition_with_a_wide_span_is_paused_alone_and_resumed_when_it_is_narrow_again() -> None:
    window, other = Window(Limits()), partition(1)
    assert changes(window, partition(span=SPAN_HIGH - 1), other) == ([], [])
    wide = partition(span=SPAN_HIGH)
    assert changes(window, wide, other) == ([wide], [])
    assert changes(window, partition(span=SPAN_LOW, paused=True)) == ([], [])
    narrow = partition(span=SPAN_LOW - 1, paused=True)
    assert changes(window, narrow) == ([], [narrow])


def test_a_span_with_many_holes_is_paused_when_it_comes_near_what_a_bitmap_holds() -> None:
    window = Window(Limits())
    assert changes(window, partition(span=NARROW - 1, holes=NARROW - 1)) == ([], [])
    wide = partition(span=NARROW, holes=HOLES_HIGH)
    assert changes(window, wide) == ([wide], [])
    assert changes(window, partition(span=NARROW, holes=HOLES_HIGH - 1)) == ([], [])
    assert changes(window, partition(span=NARROW, holes=HOLES_LOW, paused=True)) == ([], [])
    narrow = partition(span=NARROW, holes=HOLES_LOW - 1, paused=True)
    assert changes(window, narrow) == ([], [narrow])


def test_a_span_is_paused_before_it_is_at_its_bound() -> None:
    """Records fetched before the pause still come in, so the pause begins while the span has room for them."""
    assert MAX_SPAN > SPAN_HIGH > SPAN_LOW > MAX_BITMAP > NARROW
    assert MAX_HOLES > HOLES_HIGH > HOLES_LOW > 0


def put_off(window: Window, number: int, records: int, size: int = 0, *, soon: bool) -> Partition:
    """A partition whose records wait until they are due."""
    tier = partition(number)
    for offset in range(records):
        window.park(tier, Record("requests", number, offset, bytes(size)), None)
    window.put_off_until_due(tier, soon=soon)
    return tier


def cut(window: Window) -> list[tuple[int, list[int]]]:
    """The records that the window drops, as partition numbers and offsets."""
    return [(tier.number, [record.offset for record in behind]) for tier, behind in window.cut()]


def draw(window: Window, source: Partition, count: int) -> None:
    """Draw this many of a partition's records."""
    drawn = window.draw(count, lambda where, records, most: min(most, len(records)) if where is source else 0)
    assert len(drawn) == count


def test_a_tier_whose_first_record_is_not_due_for_long_is_paused_and_the_others_go_on() -> None:
    window, other = Window(Limits()), partition(1)
    early = put_off(window, 0, 3, soon=False)
    assert (cut(window), changes(window, early, other)) == ([], ([early], []))
    early.paused = True
    window.put_off_until_due(early, soon=False)
    assert (cut(window), changes(window, early, other)) == ([], ([], []))
    window.put_off_until_due(early, soon=True)
    assert (cut(window), changes(window, early, other)) == ([], ([], [early]))
    window.put_off_until_due(early, soon=False)
    draw(window, early, 3)
    assert changes(window, early, other) == ([], [early])


def test_a_tier_with_enough_records_here_is_not_fetched_each_time_its_first_record_is_due_soon() -> None:
    """If the tier were fetched each time, all of its records would be fetched again for each record that comes due."""
    window = Window(Limits())
    tier = put_off(window, 0, AHEAD_RECORDS + 100, soon=False)
    assert cut(window) == [(0, [*range(AHEAD_RECORDS + 99, AHEAD_RECORDS - 1, -1)])]
    tier.paused = True
    for _ in range(AHEAD_RECORDS // 2):
        window.put_off_until_due(tier, soon=True)
        assert (cut(window), changes(window, tier)) == ([], ([], []))
        draw(window, tier, 1)
        window.put_off_until_due(tier, soon=False)
    window.put_off_until_due(tier, soon=True)
    assert changes(window, tier) == ([], [tier])


def test_a_tier_whose_first_record_is_due_soon_keeps_those_behind_it_and_is_fetched_continuously() -> None:
    """If the window dropped the records behind the first one, Kafka would send them again for each due record."""
    window = Window(Limits())
    soon = put_off(window, 0, AHEAD_RECORDS, soon=True)
    for _ in range(100):
        draw(window, soon, 1)
        window.park(soon, Record("requests", 0, soon.parked, b""), None)
        assert (cut(window), changes(window, soon)) == ([], ([], []))
    assert (window.parked, soon.parked) == (0, AHEAD_RECORDS)


def test_an_overfull_tier_is_fetched_again_once_half_of_the_kept_records_are_gone() -> None:
    window = Window(Limits())
    tier = put_off(window, 0, AHEAD_RECORDS + 2, soon=True)
    assert cut(window) == [(0, [AHEAD_RECORDS + 1, AHEAD_RECORDS])]
    assert changes(window, tier) == ([tier], [])
    tier.paused = True
    draw(window, tier, AHEAD_RECORDS // 2 - 1)
    assert changes(window, tier) == ([], [])
    draw(window, tier, 1)
    assert (cut(window), changes(window, tier)) == ([], ([], [tier]))


def test_put_off_records_have_four_times_the_room_of_parked_ones_and_the_largest_partition_yields() -> None:
    window = Window(Limits(records=1024))
    small, many, large = put_off(window, 0, 40, soon=True), put_off(window, 1, 1800, soon=True), partition(2)
    assert cut(window) == []
    large = put_off(window, 2, 840, 2 * UNIT_BYTES, soon=True)
    assert cut(window) == [(2, [*range(839, 419, -1)])]
    late = put_off(window, 3, 1600, soon=False)
    assert cut(window) == [(3, [*range(1599, 0, -1)])]
    assert [tier.parked for tier in (small, many, large, late)] == [40, 1800, 420, 1]


def test_a_partition_keeps_its_equal_part_however_large_the_first_records_of_others_are() -> None:
    window = Window(Limits(records=LEAST_PARKED))
    for number in range(15):
        put_off(window, number, 2, 400 * UNIT_BYTES, soon=False)
    soon = put_off(window, 15, 120, soon=True)
    assert cut(window) == [(number, [1]) for number in range(15)]
    assert soon.parked == 120


def test_few_records_are_fetched_at_once_if_those_behind_may_belong_to_a_tier() -> None:
    window = Window(Limits(records=4096))
    assert window.batch == MOST_AT_ONCE
    tier = put_off(window, 0, 1, soon=True)
    assert window.batch == FEW_AT_ONCE
    window.release(tier)
    assert window.batch == MOST_AT_ONCE


def test_due_records_without_room_are_parked_as_soon_as_there_is_room() -> None:
    window = Window(Limits())
    due = put_off(window, 0, AHEAD_RECORDS + 1, 7, soon=True)
    cut(window)
    window.bring_back(due)
    assert (window.parked, window.first.bytes, window.first.put_off_bytes) == (AHEAD_RECORDS, 7 * AHEAD_RECORDS, 0)
    assert not window.first.is_cut(due)
    window.bring_back(due)
    assert window.parked == AHEAD_RECORDS


@pytest.mark.parametrize("way", ["drawn", "released"])
def test_records_that_are_not_due_take_no_room_however_many_tiers_there_are(way: str) -> None:
    """If such records took room, those of the longest tier would fill the window for a day, and no other would fit."""
    window = Window(Limits(records=LEAST_PARKED, bytes=LEAST_PARKED * 100))
    tiers = [put_off(window, number, 3, 100, soon=False) for number in range(PUT_OFF_SHARE * LEAST_PARKED)]
    assert sum(len(behind) for _, behind in cut(window)) >= 2 * len(tiers) - 1
    window.load.bytes += 100 * sum(tier.parked for tier in tiers)
    fill(window, LEAST_PARKED - 1)
    assert (full(window), window.parked, window.first.bytes) == (False, LEAST_PARKED - 1, 0)
    fill(window, LEAST_PARKED)
    assert full(window)
    fill(window, LEAST_PARKED // 2)
    assert not full(window)
    fill(window, 0)

    if way == "drawn":
        assert len(window.draw(len(tiers), lambda _, records, most: most)) == len(tiers)
    for tier in tiers if way == "released" else ():
        assert [record.offset for record in window.release(tier)] == [0]
    assert (window.parked, window.first.bytes, window.first.put_off_bytes) == (0, 0, 0)
    assert (len(window.put_off), {(tier.parked, tier.parked_bytes) for tier in tiers}) == (0, {(0, 0)})
    assert not any(map(window.first.is_cut, tiers))


def test_a_partition_that_goes_is_fetched_from_no_more() -> None:
    window, going = Window(Limits()), partition(phase=Phase.REVOKING)
    assert changes(window, going) == ([going], [])
    going.paused = True
    assert changes(window, going) == ([], [])


def test_a_partition_that_is_to_be_sought_is_paused_first_and_sought_when_it_resumes() -> None:
    window, back = Window(Limits()), partition()
    back.rewind_to = 7
    assert changes(window, back) == ([back], [])
    back.paused = True
    assert changes(window, back) == ([], [back])


def test_the_intake_also_seeks_in_a_new_partition_that_could_not_be_opened() -> None:
    window, new = Window(Limits()), partition(phase=Phase.ASSIGNED)
    new.rewind_to = 0
    assert changes(window, new) == ([new], [])
    new.paused = True
    assert changes(window, new) == ([], [new])


def test_records_given_back_are_fetched_again_from_the_first_of_them() -> None:
    window, held = Window(Limits()), partition()
    for offset in range(5):
        held.ledger.take(offset)
        window.park(held, Record("requests", 0, offset, b""), b"ab"[offset % 2 :][:1])
    released = window.first.remove(held, keep=2)
    held.give_back(released)
    assert {record.offset for record in released} == {4, 3, 2}
    assert (held.rewind_to, held.ledger.taken, held.parked, window.parked) == (2, frozenset({0, 1}), 2, 2)
