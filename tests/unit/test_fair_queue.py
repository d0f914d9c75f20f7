"""The fair queue with its places and tenants, the window, the due queue, shares outside, costs, and a lone tenant."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import Phase as Phases
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.job import DEFAULT_TTL_SECONDS
from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.drawn import drawn
from tests.unit.echo_worker import assessed, working
from tests.unit.echo_worker import record as job_record
from tests.unit.stage_rig import Desk, Intake, OneParty, Settler, bare_stage, stage_with
from workers.inference.tenants import BYTES_A_TOKEN, MOST_TENANTS, AnswerTokens
from workers.stage.defects import Defects
from workers.stage.dispatcher import MOST_DEFERRED
from workers.stage.due_queue import AHEAD_RECORDS, LOOK_AGAIN_SECONDS, SOON_SECONDS, DueQueue
from workers.stage.fair_queue import (
    MOST_FORMER,
    OWN_BYTES,
    QUEUE_BYTES,
    REACH,
    SLOW_SECONDS,
    STILL_SECONDS,
    TIGHT_SECONDS,
    FairQueue,
    Queued,
)
from workers.stage.partition import Partition, Phase
from workers.stage.progress import MAX_BITMAP, MAX_HOLES, MAX_SPAN, Progress
from workers.stage.record import Party, Record
from workers.stage.runner import Handled, Runner
from workers.stage.settler import Batch, SettlerState
from workers.stage.sharing import Backpressure, Place
from workers.stage.source import PartitionId
from workers.stage.stage import Stage
from workers.stage.window import (
    FEW_AT_ONCE,
    HOLES_HIGH,
    HOLES_LOW,
    KEPT,
    MOST_AT_ONCE,
    NARROW,
    SPAN_HIGH,
    SPAN_LOW,
    Limits,
    RemoteShare,
    Window,
)

# -- fair queue ------------------------------------------------------------------------------------------------------
A, B, C = b"a", b"b", b"c"
MANY = 1_000_000
ROOM = 512
"""Number of records without a value that fit into the queues of these tests."""


def partition(number: int = 0, *, place: Place = Place.FIRST) -> Partition:
    made = Partition(place.name, number, 1, 0.0, place)
    made.open(Progress(0), 0)
    return made


class Sender:
    """A sender that appends parties' records to partitions."""

    def __init__(self, *partitions: Partition) -> None:
        self._partitions = partitions
        self._sent = Counter[Partition]()

    def send(self, count: int, size: int = 0, cost: float = 1.0, urgency: int = 0) -> list[Queued]:
        sent = []
        for index in range(count):
            where = self._partitions[index % len(self._partitions)]
            value = b"x" * size
            sent.append(
                (where, Record(where.topic, where.number, self._sent[where], value, cost=cost, urgency=urgency))
            )
            self._sent[where] += 1
        return sent


def queue_with(lines: dict[Party, list[Queued]]) -> FairQueue:
    queue = FairQueue(QUEUE_BYTES, ROOM)
    add(queue, lines)
    return queue


def add(queue: FairQueue | Window, lines: dict[Party, list[Queued]]) -> None:
    for party, records in lines.items():
        for where, record in records:
            queue.add(where, record, party)


def always(partition: Partition, record: Record) -> bool:
    return True


def parties(drawn: list[Queued], lines: dict[Party, list[Queued]]) -> list[Party]:
    """The party of each drawn record."""
    owners = {id(record): party for party, records in lines.items() for _, record in records}
    return [owners[id(record)] for _, record in drawn]


# -- turns ---------------------------------------------------------------------------------------------------------
def test_parties_take_turns_whatever_the_order_and_the_number_in_which_they_came() -> None:
    sender = Sender(partition(0), partition(1))
    lines: dict[Party, list[Queued]] = {A: sender.send(500), B: sender.send(3), C: sender.send(20)}
    drawn = queue_with(lines).draw(30, always)
    assert parties(drawn, lines)[:9] == [A, B, C] * 3
    assert Counter(parties(drawn, lines)) == {A: 14, C: 13, B: 3}


def test_turns_go_on_where_they_stopped_when_places_become_free_one_by_one() -> None:
    sender = Sender(partition())
    lines: dict[Party, list[Queued]] = {A: sender.send(50), B: sender.send(50), C: sender.send(50)}
    queue = queue_with(lines)
    drawn = [one for _ in range(12) for one in queue.draw(1, always)]
    assert parties(drawn, lines) == [A, B, C] * 4


def test_a_single_party_gets_all_places_from_all_partitions_alike() -> None:
    halves = partition(0), partition(1)
    queue = queue_with({A: Sender(*halves).send(100)})
    drawn = queue.draw(40, always)
    assert Counter(where for where, _ in drawn) == {halves[0]: 20, halves[1]: 20}
    one_by_one = [queue.draw(1, always)[0][0] for _ in range(4)]
    assert one_by_one in ([*halves, *halves], [*reversed(halves), *reversed(halves)])


def test_long_prompts_get_as_many_turns_as_they_cost() -> None:
    sender = Sender(partition())
    lines: dict[Party, list[Queued]] = {A: sender.send(40, cost=4.0), B: sender.send(400)}
    drawn = queue_with(lines).draw(50, always)
    assert Counter(parties(drawn, lines)) == {A: 10, B: 40}


def test_a_queue_without_a_ready_record_saves_up_no_service_and_delays_no_other() -> None:
    ready, not_yet = partition(0), partition(1)
    waiting, running = Sender(not_yet).send(10, cost=3.0), Sender(ready).send(10)
    lines: dict[Party, list[Queued]] = {A: waiting, B: running}
    queue = queue_with(lines)
    assert parties(queue.draw(8, lambda where, _: where is ready), lines) == [B] * 8
    later = parties(queue.draw(3, always), lines)
    # If a queue without a ready record saved up turns, A would now have three turns before B.
    assert sorted(filter(None, later)) == [A, B, B]


def test_a_record_that_is_not_ready_stops_what_is_behind_it_in_its_partition() -> None:
    where = partition()
    sent = Sender(where).send(10)
    queue = queue_with({None: sent})

    def before_the_fourth(_: Partition, record: Record) -> bool:
        return record.offset < 4

    assert queue.draw(10, before_the_fourth) == sent[:4]
    assert queue.draw(10, before_the_fourth) == []
    assert queue.draw(1, always) == sent[4:5]


def test_a_returning_party_has_saved_up_nothing_and_still_owes_its_excess() -> None:
    sender = Sender(partition())
    lines: dict[Party, list[Queued]] = {A: sender.send(100), B: sender.send(1, cost=10.0)}
    queue = queue_with(lines)
    assert Counter(parties(queue.draw(3, always), lines))[B] == 1
    more: dict[Party, list[Queued]] = {B: sender.send(50), C: sender.send(50)}
    add(queue, more)
    lines = {A: lines[A], B: lines[B] + more[B], C: more[C]}
    assert B not in parties(queue.draw(16, always), lines), "B has had ten units, and A only two"
    assert Counter(parties(queue.draw(30, always), lines)) == {A: 10, B: 10, C: 10}


def test_a_new_party_begins_where_the_others_are() -> None:
    sender = Sender(partition())
    lines: dict[Party, list[Queued]] = {A: sender.send(100), C: sender.send(50)}
    queue = queue_with({A: lines[A]})
    queue.draw(50, always)
    add(queue, {C: lines[C]})
    assert Counter(parties(queue.draw(20, always), lines)) == {A: 10, C: 10}


def test_a_cost_that_turns_out_higher_or_lower_is_corrected_also_for_a_party_that_is_gone() -> None:
    sender = Sender(partition())
    lines: dict[Party, list[Queued]] = {A: sender.send(100), B: sender.send(100)}
    queue = queue_with(lines)
    queue.draw(20, always)
    queue.correct(A, 10.0)
    assert Counter(parties(queue.draw(10, always), lines)) == {B: 10}
    queue.correct(A, -6.0)
    assert Counter(parties(queue.draw(6, always), lines)) == {A: 6}
    queue.correct(C, 8.0)
    lines[C] = sender.send(10)
    add(queue, {C: lines[C]})
    assert Counter(parties(queue.draw(14, always), lines)) == {A: 7, B: 7}


def test_an_urgent_record_is_the_next_of_its_party_and_takes_no_other_partys_turn() -> None:
    one, two = partition(0), partition(1)
    usual = Sender(one, two).send(20, urgency=1000)
    lines: dict[Party, list[Queued]] = {A: usual, B: Sender(partition(2)).send(20, urgency=1)}
    queue = queue_with(lines)
    urgent = (two, Record("first", 1, 99, b"", urgency=5))
    queue.add(*urgent, A)
    drawn = queue.draw(4, always)
    assert Counter(where.number == 2 for where, _ in drawn) == {True: 2, False: 2}
    assert next(each for each in drawn if each[0].number != 2) == urgent


@given(st.lists(st.integers(0, 5), max_size=60))
def test_a_party_is_drawn_by_urgency_and_then_in_order(urgencies: list[int]) -> None:
    where = partition()
    sender = Sender(where)
    sent = [one for urgency in urgencies for one in sender.send(1, urgency=urgency)]
    drawn = [record for _, record in queue_with({A: sent}).draw(100, always)]
    assert drawn == sorted((record for _, record in sent), key=lambda record: (record.urgency, record.offset))


def test_many_parties_that_come_once_leave_nothing_behind() -> None:
    where = partition()
    sender, queue = Sender(where), FairQueue(QUEUE_BYTES, ROOM)
    for number in range(3 * MOST_FORMER):
        [(_, record)] = sender.send(1, cost=float(1 + number % 3))
        queue.add(where, record, b"%d" % number)
        assert len(queue.draw(1, always)) == 1
    assert queue.records == 0


COSTS = st.dictionaries(st.sampled_from([A, B, C]), st.lists(st.integers(1, 10), max_size=30), min_size=1)
"""The costs of each party's records."""


@given(COSTS, st.lists(st.integers(0, 9), max_size=40))
def test_everything_is_drawn_once_in_order_and_no_waiting_party_is_left_behind(
    sizes: dict[bytes, list[int]], rooms: list[int]
) -> None:
    where = partition()
    lines: dict[Party, list[Queued]] = {}
    sender = Sender(where)
    for name, lengths in sizes.items():
        lines[name] = [one for cost in lengths for one in sender.send(1, cost=float(cost))]
    queue = queue_with(lines)
    dearest = max((record.cost for records in lines.values() for _, record in records), default=0.0)
    drawn: list[Queued] = []
    for room in [*rooms, 1000]:
        got = queue.draw(room, always)
        assert len(got) == min(room, sum(map(len, lines.values())) - len(drawn))
        drawn += got
        spent = {party: _cost_of(drawn, party, lines) for party in lines}
        waiting = [party for party in lines if _count_of(drawn, party, lines) < len(lines[party])]
        # By start-time fair queueing, the costs of two parties that always wait differ by at most the costliest record.
        for party in waiting:
            assert all(spent[party] + dearest >= spent[other] for other in waiting)
    for sent in lines.values():
        assert [one for one in drawn if one in sent] == sent
    assert (queue.records, queue.bytes) == (0, 0)


def _cost_of(drawn: list[Queued], party: Party, lines: dict[Party, list[Queued]]) -> float:
    mine = {id(record) for _, record in lines[party]}
    return sum(record.cost for _, record in drawn if id(record) in mine)


def _count_of(drawn: list[Queued], party: Party, lines: dict[Party, list[Queued]]) -> int:
    mine = {id(record) for _, record in lines[party]}
    return sum(id(record) in mine for _, record in drawn)


# -- urgency -------------------------------------------------------------------------------------------------------
def one_by_one(queue: FairQueue, count: int) -> list[int]:
    """Draw records one by one; return their offsets."""
    return [record.offset for _ in range(count) for _, record in queue.draw(1, always)]


def test_urgent_records_behind_a_flood_of_their_tenant_are_drawn_first() -> None:
    sender = Sender(partition())
    queue = queue_with({A: [*sender.send(400), *sender.send(20, urgency=-9)]})
    assert one_by_one(queue, 22) == [*range(400, 420), 0, 1]


def test_an_urgent_record_overtakes_only_within_its_reach_so_that_a_kill_suspects_few() -> None:
    sender = Sender(partition())
    queue = queue_with({A: [*sender.send(REACH + 10), *sender.send(2, urgency=-9), *sender.send(5)]})
    urgent = [REACH + 10, REACH + 11]
    assert one_by_one(queue, 14) == [*range(10), urgent[0], 10, urgent[1], 11]
    assert sorted(one_by_one(queue, MANY // 100)) == [*range(12, REACH + 10), *range(REACH + 12, REACH + 17)]
    assert (queue.records, queue.bytes) == (0, 0)


def test_a_record_that_holds_up_a_full_partition_is_the_next_of_its_tenant_whatever_its_urgency() -> None:
    full, other = partition(0), partition(1)
    held_up = Sender(full).send(3, urgency=5)
    for where, record in held_up:
        where.ledger.take(record.offset)
    lines: dict[Party, list[Queued]] = {A: [*held_up, *Sender(other).send(3, urgency=-9)], B: []}
    queue = queue_with(lines)
    full.is_wide = True
    assert [(where, record.offset) for where, record in queue.draw(3, always)] == [(full, 0), (other, 0), (other, 1)]
    full.settle([0], full.progress([0]))
    assert [(where, record.offset) for where, record in queue.draw(2, always)] == [(full, 1), (other, 2)]


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3)), max_size=60, unique_by=lambda each: each[0]))
def test_in_any_order_of_arrival_each_record_is_drawn_once_and_none_far_before_an_earlier_one(
    arrivals: list[tuple[int, int]],
) -> None:
    """Records that were given back come again behind later ones."""
    where = partition()
    queue, drawn, waiting = FairQueue(QUEUE_BYTES, ROOM), list[int](), set[int]()
    for index, (offset, urgency) in enumerate(arrivals):
        queue.add(where, Record("first", 0, offset, b"", urgency=urgency), A)
        waiting.add(offset)
        if index % 3 == 2:
            [(_, record)] = queue.draw(1, always)
            in_order = arrivals[: index + 1] == sorted(arrivals[: index + 1])
            assert record.offset <= min(waiting) + REACH or not in_order
            waiting.remove(record.offset)
            drawn.append(record.offset)
    drawn += [record.offset for _, record in queue.draw(MANY, always)]
    assert sorted(drawn) == sorted(offset for offset, _ in arrivals)


def test_thousands_of_tenants_take_turns_one_by_one() -> None:
    """In an earlier version, each draw looked at every tenant."""
    where = partition()
    queue, tenants = FairQueue(QUEUE_BYTES, ROOM), 2_000
    for offset in range(3 * tenants):
        queue.add(where, Record("first", 0, offset, b""), b"%d" % (offset % tenants))
    calls = 0

    def ready(_: Partition, record: Record) -> bool:
        nonlocal calls
        calls += 1
        return True

    drawn = [record.offset for _ in range(3 * tenants) for _, record in queue.draw(1, ready)]
    assert (drawn, calls) == (list(range(3 * tenants)), 3 * tenants)


# -- beyond a share ------------------------------------------------------------------------------------------------
def shared(later_share: float = 0.1) -> Window:
    return Window(Limits(records=ROOM, bytes=3 * ROOM * OWN_BYTES), later_share)


def park(window: Window, records: list[Queued], party: Party) -> list[Queued]:
    """Park the records one by one; return the surplus: records beyond a party's share."""
    surplus = []
    for where, record in records:
        where.ledger.take(record.offset)
        window.add(where, record, party)
        surplus += window.surplus(MANY)
    window.look(0.0)
    window.look(TIGHT_SECONDS)
    return surplus


def test_a_party_that_is_alone_is_not_beyond_its_share_while_the_lot_moves_fast_or_not_at_all() -> None:
    window, where = shared(), partition()
    assert park(window, Sender(where).send(3 * ROOM), A) == []
    assert window.wants_pause(where)
    window.look(TIGHT_SECONDS + SLOW_SECONDS)  # nothing was drawn, so the engine is away
    assert window.surplus(MANY) == []
    assert window.wants_pause(where)
    window.draw(ROOM, always)
    window.look(TIGHT_SECONDS + 2 * SLOW_SECONDS)  # a queue's worth of records was drawn, and the queue is still full
    assert window.surplus(MANY) == []
    window.draw(ROOM - 1, always)
    park(window, Sender(where).send(2 * ROOM), A)
    window.look(TIGHT_SECONDS + 3 * SLOW_SECONDS)  # less than a queue's worth of records was drawn
    assert len(window.surplus(7)) == 7


def test_a_party_alone_in_a_slow_lot_gives_way_at_its_end_until_the_lot_is_half_empty() -> None:
    window, where = shared(), partition()
    sender = Sender(where)
    park(window, sender.send(ROOM), A)
    window.draw(1, always)
    window.look(TIGHT_SECONDS + SLOW_SECONDS)
    assert not window.wants_pause(where)
    assert not window.tight
    more = sender.send(10)
    add(window, {A: more})
    assert window.surplus(MANY) == more[:0:-1]
    window.look(TIGHT_SECONDS + SLOW_SECONDS + STILL_SECONDS)
    assert window.wants_pause(where), "an engine that is away makes no party wait longer"
    window.draw(ROOM // 2, always)
    window.look(TIGHT_SECONDS + SLOW_SECONDS + STILL_SECONDS + 1)
    assert not window.wants_pause(where)
    add(window, {A: sender.send(ROOM)})
    window.look(TIGHT_SECONDS + SLOW_SECONDS + STILL_SECONDS + 1.1)
    assert window.surplus(MANY) == []


def test_the_largest_party_yields_to_a_newcomer_until_both_have_as_much() -> None:
    window, where = shared(), partition()
    sender = Sender(where)
    flood = sender.send(ROOM)
    assert park(window, flood, A) == []
    assert park(window, sender.send(20), B) == flood[:-21:-1]  # the newest of the flood are removed
    assert not window.wants_pause(where)  # the flood does not keep later records out
    more = sender.send(100)
    assert park(window, more, A) == more  # for each record of A that comes, one of A's is removed
    others = sender.send(1000)
    beyond = park(window, others, B)
    assert sum(one in others for one in beyond) == 1000 + 20 - ROOM // 2
    assert window.queued == ROOM


def test_the_party_whose_records_cost_most_yields_although_another_has_more_of_them() -> None:
    window, sender = shared(), Sender(partition())
    dear = sender.send(100, cost=10.0)
    assert park(window, dear, A) == []
    assert park(window, sender.send(ROOM - 100), B) == []
    assert park(window, sender.send(20), B) == dear[:-21:-1]


def test_a_party_with_one_record_keeps_it() -> None:
    window, sender = shared(), Sender(partition())
    for number in range(ROOM):
        assert park(window, sender.send(1), b"%d" % number) == []
    assert park(window, sender.send(1), b"one more") == []


def test_bytes_are_shared_too() -> None:
    window, sender = Window(Limits(bytes=3 * (1_000_000 + 10 * OWN_BYTES)), 0.1), Sender(partition())
    big = sender.send(10, size=100_000)
    assert park(window, big, A) == []
    assert park(window, sender.send(1, size=100_000), B) == [big[-1]]


def test_without_sharing_nothing_is_beyond_a_share() -> None:
    window, where = Window(Limits(bytes=ROOM * OWN_BYTES)), partition()
    assert park(window, Sender(where).send(2 * ROOM), None) == []


# -- places --------------------------------------------------------------------------------------------------
def both(share: float, first: int = 400, later: int = 400) -> Window:
    window = shared(later_share=share)
    park(window, Sender(partition(0)).send(first), A)
    park(window, Sender(partition(0, place=Place.LATER)).send(later), A)
    return window


def later_ones(drawn: list[Queued]) -> int:
    return sum(where.place is Place.LATER for where, _ in drawn)


@pytest.mark.parametrize("room", [1, 7, 100])
@pytest.mark.parametrize(("share", "expected"), [(0.1, 20), (0.25, 50)])
def test_the_later_place_has_its_share_whether_places_become_free_one_by_one_or_together(
    room: int, share: float, expected: int
) -> None:
    window = both(share)
    drawn: list[Queued] = []
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


def test_the_later_place_saves_up_nothing_while_none_of_its_records_is_ready() -> None:
    window = both(0.1)
    for _ in range(200):
        window.draw(1, lambda where, _: where.place is Place.FIRST)
    assert later_ones(window.draw(50, always)) == 6  # its share, and at most the one record that it is still owed


def test_a_full_lot_stops_no_partition_of_the_other_lot() -> None:
    window, first, later = shared(), partition(0), partition(0, place=Place.LATER)
    park(window, Sender(first).send(ROOM), A)
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
    assert window.draw(5, lambda where, _: where is not held) == []


@pytest.mark.parametrize("place", [Place.LATER, Place.SPARE])
def test_a_flood_in_a_place_after_the_first_stops_no_other_place_and_is_never_deferred(place: Place) -> None:
    window, first, where = shared(), partition(), partition(place=place)
    sender = Sender(where)
    for party in (A, B):
        assert park(window, sender.send(ROOM), party) == []
    assert (window.wants_pause(first), window.wants_pause(where)) == (False, True)


# -- window ----------------------------------------------------------------------------------------------------------
def windowed(
    number: int = 0, *, span: int = 0, holes: int = 1, paused: bool = False, phase: Phase = Phase.OPEN
) -> Partition:
    """A partition with the first `holes` records in flight and all others up to `span` settled."""
    made = Partition("requests", number, 1, 0.0)
    made.open(Progress(0), 0)
    if span:
        for offset in range(holes):
            made.ledger.take(offset)
        made.ledger.reach(span)
    made.phase, made.paused, made.is_wide = phase, paused, paused and span > 0
    return made


HOLDER = Partition("requests", 9, 1, 0.0)
"""The partition to which all records of a filled window belong."""


def changes(window: Window, *partitions: Partition) -> tuple[list[Partition], list[Partition]]:
    return window.changes(partitions)


def full(window: Window) -> bool:
    """True if the window takes no more records."""
    return window.wants_pause(windowed())


def fill(window: Window, queued: int) -> None:
    """Queue or draw records until this number is queued."""
    having = window.first.records
    for offset in range(having, queued):
        window.add(HOLDER, Record("requests", 0, offset, b""), None)
    window.draw(having - queued, lambda where, _: where is HOLDER)
    window.look(0.0)
    window.look(TIGHT_SECONDS)


ROOM_FOR = Limits(bytes=ROOM * OWN_BYTES)


# -- records and bytes ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        # A full queue takes records again only when half of its room is free, or a quarter of the window's bytes.
        (ROOM_FOR, [(ROOM - 1, 0, False), *((n, 0, True) for n in (ROOM, ROOM - 1, ROOM // 2 + 1)), (256, 0, False)]),
        (ROOM_FOR, [(ROOM, 0, True), (ROOM // 2, 0, False), (ROOM - 1, 0, False)]),
        (Limits(bytes=4 * QUEUE_BYTES), [(65_535, 0, False), (65_536, 0, True)]),
        (Limits(bytes=1000), [(0, 999, False), (0, 1000, True), (0, 751, True), (0, 750, False)]),
        # A window that was full of records does not open while it is full of bytes.
        (ROOM_FOR, [(ROOM, ROOM * OWN_BYTES, True), (0, ROOM * OWN_BYTES, True), (0, 0, False)]),
        # One record larger than the window is taken and does not stay in the way.
        (Limits(bytes=1000), [(0, 5000, True), (0, 0, False)]),
    ],
)
def test_a_window_is_full_of_records_or_bytes_and_opens_with_hysteresis(
    limits: Limits, steps: list[tuple[int, int, bool]]
) -> None:
    """A step is the number of queued records, the bytes, and whether the window is then full."""
    window, seen = Window(limits), []
    for queued, size, _ in steps:
        window.load.bytes = size
        fill(window, queued)
        seen.append(full(window))
    assert seen == [is_full for _, _, is_full in steps]


def test_a_window_that_has_no_room_for_a_moment_fetches_nothing_and_pauses_no_partition() -> None:
    window = Window(ROOM_FOR)
    fill(window, ROOM - 1)
    window.add(HOLDER, Record("requests", 0, ROOM - 1, b""), None)
    for now, tight, paused in ((5.0, True, False), (5.1, True, False), (5.0 + TIGHT_SECONDS, False, True)):
        window.look(now)
        assert (window.tight, full(window)) == (tight, paused)


def test_a_full_lot_of_several_parties_overflows_in_the_first_place_and_stops_fetching_in_the_later_one() -> None:
    for later in (False, True):
        window, holder = shared(), Partition("requests", 9, 1, 0.0, Place.LATER if later else Place.FIRST)
        for offset in range(ROOM):
            window.add(holder, Record("requests", 0, offset, b""), (b"A", b"B")[offset % 2])
        window.look(5.0)
        assert window.tight is later


def test_a_window_filled_by_one_record_each_of_many_parties_admits_more_once_half_are_served() -> None:
    window = shared()
    for offset in range(ROOM + 1):  # each party has one record, so there is no surplus
        window.add(HOLDER, Record("requests", 0, offset, b""), b"party-%d" % offset)
    assert window.surplus(1000) == []
    window.look(0.0)
    assert window.tight
    window.look(TIGHT_SECONDS)
    assert full(window)
    window.draw(ROOM // 2, always)
    window.look(1.0)
    assert full(window)
    window.draw(1, always)
    window.look(1.1)
    assert not full(window)


def test_at_least_one_record_is_asked_for_and_never_more_than_fit() -> None:
    window = Window(ROOM_FOR)
    asked = []
    for queued in (0, 400, ROOM - 1, ROOM, 5000):
        fill(window, queued)
        asked.append(window.batch)
    assert asked == [ROOM, ROOM - 400, 1, 1, 1]


# -- pausing -------------------------------------------------------------------------------------------------------
def test_a_new_partition_is_resumed_even_by_a_full_window_since_its_first_record_opens_it() -> None:
    window = Window(ROOM_FOR)
    fill(window, 10_000)
    new = windowed(phase=Phase.ASSIGNED, paused=True)
    assert changes(window, new) == ([], [new])


def test_a_full_window_pauses_every_open_partition_once_and_resumes_them_together() -> None:
    window, partitions = Window(ROOM_FOR), [windowed(number) for number in range(3)]
    fill(window, ROOM)
    assert changes(window, *partitions) == (partitions, [])
    for one in partitions:
        one.paused = True
    assert changes(window, *partitions) == ([], [])
    fill(window, ROOM // 2)
    assert changes(window, *partitions) == ([], partitions)


@pytest.mark.parametrize(
    ("state", "paused", "rewind_to", "change"),
    [
        # A partition with a wide span is paused, and resumed when it is narrow again.
        ({"span": SPAN_HIGH - 1}, False, None, None),
        ({"span": SPAN_HIGH}, False, None, "pause"),
        ({"span": SPAN_LOW}, True, None, None),
        ({"span": SPAN_LOW - 1}, True, None, "resume"),
        # A span with many holes is paused when it comes near what a bitmap holds.
        ({"span": NARROW - 1, "holes": NARROW - 1}, False, None, None),
        ({"span": NARROW, "holes": HOLES_HIGH}, False, None, "pause"),
        ({"span": NARROW, "holes": HOLES_HIGH - 1}, False, None, None),
        ({"span": NARROW, "holes": HOLES_LOW}, True, None, None),
        ({"span": NARROW, "holes": HOLES_LOW - 1}, True, None, "resume"),
        # A partition that goes is fetched from no more.
        ({"phase": Phase.REVOKING}, False, None, "pause"),
        ({"phase": Phase.REVOKING}, True, None, None),
        # A partition that is to be sought is paused first and sought when it resumes, also if it could not be opened.
        ({}, False, 7, "pause"),
        ({}, True, 7, "resume"),
        ({"phase": Phase.ASSIGNED}, False, 0, "pause"),
        ({"phase": Phase.ASSIGNED}, True, 0, "resume"),
    ],
)
def test_a_partition_is_paused_and_resumed_alone_by_its_own_state(
    state: dict[str, Any], paused: bool, rewind_to: int | None, change: str | None
) -> None:
    window, other, one = Window(Limits()), windowed(1), windowed(paused=paused, **state)
    one.rewind_to = rewind_to
    assert changes(window, one, other) == ([one] * (change == "pause"), [one] * (change == "resume"))


def test_a_span_is_paused_before_it_is_at_its_bound() -> None:
    """Records fetched before the pause still come in, so the pause begins while the span has room for them."""
    assert MAX_SPAN > SPAN_HIGH > SPAN_LOW > MAX_BITMAP > NARROW
    assert MAX_HOLES > HOLES_HIGH > HOLES_LOW > 0


# -- due queue -------------------------------------------------------------------------------------------------------
class Tier:
    """A pace by which each record is due at its timestamp."""

    paced = True

    def room(self) -> int:
        return MANY

    def due_ms(self, record: Record) -> int | None:
        return record.timestamp_ms


class WallClock(HandClock):
    """A clock whose wall time an operator sets forward by `ahead` seconds."""

    ahead = 0.0

    def time(self) -> float:
        return self.now + self.ahead


class DueRig:
    """A due queue beside a window, with a clock of its own."""

    def __init__(self, capacity_bytes: int = QUEUE_BYTES) -> None:
        self.clock = WallClock()
        pace: Backpressure = Tier()
        self.queue = DueQueue(pace, capacity_bytes, Defects(Metrics()), self.clock)
        self.window = Window(Limits(), due=self.queue)

    def send(self, where: Partition, offsets: range, *, after: float, size: int = 0) -> None:
        """Take records that are due after these seconds."""
        due_ms = round(1000 * (self.clock.now + after))
        for offset in offsets:
            record = Record("requests", where.number, offset, bytes(size), timestamp_ms=due_ms)
            assert self.queue.keeps(where, record)

    def due(self, most: int = MANY) -> list[int]:
        return [record.offset for _, record in self.queue.due(most)]

    def cut(self) -> list[tuple[int, list[int]]]:
        """The records that exceed the bounds, as partition numbers and offsets."""
        return [(tier.number, [record.offset for record in behind]) for tier, behind in self.queue.cut()]

    def change(self, where: Partition) -> str | None:
        """Pauses or resumes the partition for the window; the client does it at once."""
        pause, resume = self.window.changes([where])
        where.paused = bool(pause) or (where.paused and not resume)
        return "pause" if pause else "resume" if resume else None


def test_records_wait_until_the_first_one_of_their_partition_is_due_and_leave_in_order() -> None:
    rig, late, early = DueRig(), windowed(0), windowed(1)
    rig.send(late, range(2), after=5.0)
    rig.send(late, range(2, 3), after=0.0)  # behind a record that is not due
    rig.send(early, range(10, 13), after=1.0)
    assert (rig.due(), len(rig.queue)) == ([], 6)
    rig.clock.now += 1.0
    assert (rig.due(2), rig.due()) == ([10, 11], [12])
    rig.clock.now += 4.0
    assert (rig.due(), len(rig.queue), rig.queue.value_bytes) == ([0, 1, 2], 0, 0)
    assert not rig.queue.keeps(late, Record("requests", 0, 3, b"", timestamp_ms=0))


def test_a_wall_clock_that_is_set_forward_releases_the_records_soon() -> None:
    rig, tier = DueRig(), windowed()
    rig.send(tier, range(2), after=3600.0)
    assert rig.due() == []
    rig.clock.ahead = 3600.0
    rig.clock.now += LOOK_AGAIN_SECONDS
    assert rig.due() == [0, 1]


def test_a_tier_whose_first_record_is_not_due_for_long_is_paused_until_it_is_due_soon() -> None:
    rig, tier = DueRig(), windowed()
    rig.send(tier, range(3), after=SOON_SECONDS + 60)
    assert (rig.cut(), [rig.change(tier) for _ in range(2)]) == ([], ["pause", None])
    rig.clock.now += 60
    assert (rig.due(), rig.change(tier)) == ([], "resume")


def test_a_tier_that_is_due_soon_keeps_those_behind_it_and_is_fetched_continuously() -> None:
    """If the stage dropped the records behind the first one, Kafka would send them again for each due record."""
    rig, tier = DueRig(), windowed()
    rig.send(tier, range(AHEAD_RECORDS), after=5.0)
    rig.clock.now += 5.0
    for offset in range(100):
        assert rig.due(1) == [offset]
        rig.send(tier, range(AHEAD_RECORDS + offset, AHEAD_RECORDS + offset + 1), after=5.0)
        assert (rig.cut(), rig.change(tier)) == ([], None)


@pytest.mark.parametrize("soon", [True, False])
def test_a_tier_with_enough_records_here_is_fetched_again_once_half_of_them_are_gone(soon: bool) -> None:
    """If the tier were fetched each time, all of its records would be fetched again for each record that comes due."""
    rig, tier = DueRig(), windowed()
    rig.send(tier, range(AHEAD_RECORDS + 2), after=SOON_SECONDS if soon else SOON_SECONDS + 1)
    assert rig.cut() == [(0, [AHEAD_RECORDS + 1, AHEAD_RECORDS])]
    assert rig.change(tier) == "pause"
    rig.clock.now += SOON_SECONDS + 1
    assert (len(rig.due(AHEAD_RECORDS // 2 - 1)), rig.change(tier)) == (AHEAD_RECORDS // 2 - 1, None)
    assert (len(rig.due(1)), rig.cut(), rig.change(tier)) == (1, [], "resume")


def test_where_room_is_short_the_tiers_that_are_not_due_soon_give_way_first_and_then_the_largest() -> None:
    rig = DueRig(100 * OWN_BYTES)
    soon, large, late, later = (windowed(number) for number in range(4))
    rig.send(soon, range(40), after=5.0)
    rig.send(large, range(15), after=5.0, size=3 * OWN_BYTES)
    assert rig.cut() == []
    rig.send(late, range(30), after=60.0)
    rig.send(later, range(20), after=60.0)
    assert rig.cut() == [(2, [*range(29, 0, -1)]), (3, [*range(19, 0, -1)]), (1, [*range(14, 6, -1)])]
    assert [rig.change(tier) for tier in (soon, large, late, later)] == [None, "pause", "pause", "pause"]


def test_a_record_that_is_larger_than_all_room_stays() -> None:
    rig, tier = DueRig(OWN_BYTES), windowed()
    rig.send(tier, range(1), after=5.0, size=OWN_BYTES)
    assert (rig.cut(), len(rig.queue)) == ([], 1)


def test_few_records_are_fetched_at_once_while_records_are_not_due() -> None:
    rig, tier = DueRig(), windowed()
    assert rig.window.batch == MOST_AT_ONCE
    rig.send(tier, range(1), after=5.0)
    assert rig.window.batch == FEW_AT_ONCE
    assert [record.offset for record in rig.queue.remove(tier)] == [0]
    assert (rig.window.batch, rig.change(tier)) == (MOST_AT_ONCE, None)


def test_records_that_are_not_due_take_no_room_of_the_window() -> None:
    """If such records took room, those of the longest tier would fill the window for a day, and no other would fit."""
    rig, tier = DueRig(), windowed()
    rig.window.limits = Limits(bytes=1000)
    rig.send(tier, range(1), after=3600.0, size=1000)
    rig.window.load.bytes = 1999
    assert not rig.window.heavy
    rig.window.load.bytes = 2000
    assert rig.window.heavy


# -- outside shares --------------------------------------------------------------------------------------------------
HUNG, OTHER = b"hung", b"other"


class Rig:
    """A window with one partition. A test sends records to the partition, begins them and ends them."""

    def __init__(self, records: int) -> None:
        self.window = Window(Limits(records=records, bytes=3 * ROOM * OWN_BYTES), 0.1)
        self.where = partition()
        self.running: list[tuple[bytes, Record]] = []
        self._sent: list[tuple[bytes, Record]] = []

    def send(self, party: bytes, count: int, *, outside: bool = True) -> None:
        for _ in range(count):
            sent = Record("requests", 0, len(self._sent), b"", outside=party if outside else None)
            self._sent.append((party, sent))
            self.where.ledger.take(sent.offset)
            self.window.add(self.where, sent, party)

    def begin(self) -> Counter[bytes]:
        """Begin as many records as may run; return their number by party."""
        before = len(self.running)
        turns = RemoteShare(self.window, always)

        def ready(where: Partition, record: Record) -> bool:
            allowed = turns.ready(where, record)
            assert allowed == self._may_begin(record.outside)
            self.running += [self._sent[record.offset]] * allowed
            return allowed

        for where, begun in self.window.draw(self.window.limits.records - before, ready):
            self.window.load.begin(where, begun)
        return Counter(party for party, _ in self.running[before:])

    def end(self, index: int) -> None:
        self.window.load.end(self.where, self.running.pop(index % len(self.running))[1])

    def held(self, party: bytes) -> int:
        return sum(each.outside == party for _, each in self.running)

    def _may_begin(self, party: bytes | None) -> bool:
        """The rule of the shares, computed from nothing but the list of running records."""
        free, records = self.window.limits.records - len(self.running), self.window.limits.records
        left = records - records // KEPT // 2 - sum(each.outside is not None for _, each in self.running)
        return party is None or (left > 0 and (self.held(party) < min(free, left) or free > records // KEPT))


def test_a_hung_party_leaves_a_quarter_of_the_window_and_each_later_party_gets_half_of_its_first_half_at_once() -> None:
    rig = Rig(64)
    rig.send(HUNG, 1000)
    assert rig.begin() == {HUNG: 48}
    rig.send(OTHER, 100)
    assert rig.begin() == {OTHER: 4}
    rig.send(b"third", 100)
    assert rig.begin() == {b"third": 2}
    rig.send(b"text", 100, outside=False)
    assert rig.begin() == {b"text": 10}, "records that wait for no server take each place"


def test_any_number_of_parties_with_one_hung_record_each_leaves_an_eighth_of_the_window() -> None:
    rig = Rig(64)
    for party in range(1000):
        rig.send(b"hung %d" % party, 1)
    assert rig.begin().total() == 56
    rig.where = partition()
    rig.send(b"text", 100, outside=False)
    assert rig.begin() == {b"text": 8}


def test_a_hung_partys_own_records_that_wait_for_no_server_run_too() -> None:
    rig = Rig(8)
    rig.send(HUNG, 20)
    rig.begin()
    rig.where = partition()  # in the first partition these records would wait behind the earlier ones
    rig.send(HUNG, 20, outside=False)
    assert rig.begin() == {HUNG: 2}


@pytest.mark.parametrize("records", [1, 2, 3])
def test_the_smallest_windows_keep_no_place(records: int) -> None:
    rig = Rig(records)
    rig.send(HUNG, 10)
    assert rig.begin() == {HUNG: records}


STEPS = st.one_of(st.tuples(st.sampled_from([HUNG, OTHER]), st.integers(1, 40), st.booleans()), st.integers(0, 100))
"""Steps: either a party's records, which may or may not wait for servers, or the end of a running record."""


@settings(max_examples=drawn(100))
@given(st.integers(1, 40), st.lists(STEPS, max_size=40))
def test_in_any_order_of_events_the_rule_holds_and_each_record_is_counted_until_its_end(
    records: int, steps: list[tuple[bytes, int, bool] | int]
) -> None:
    rig = Rig(records)
    for step in steps:
        if isinstance(step, tuple):
            rig.send(step[0], step[1], outside=step[2])
        elif rig.running:
            rig.end(step)
        rig.begin()
        assert len(rig.running) <= records
        assert all(rig.held(party) == rig.window.load.outside[party] for party in (HUNG, OTHER))
    while rig.running:
        rig.end(0)
    assert not rig.window.load.outside
    assert not rig.where.outside


def test_a_full_queue_of_held_back_records_is_read_on_for_as_long_as_the_handler_has_room() -> None:
    rig = Rig(8)
    rig.send(HUNG, ROOM + 6)
    rig.begin()
    rig.window.look(0.0)
    rig.window.look(TIGHT_SECONDS)
    rig.begin()
    for second in range(1, 4 * int(SLOW_SECONDS + STILL_SECONDS)):
        rig.window.look(TIGHT_SECONDS + second)
        assert not rig.begin()
    assert not rig.window.wants_pause(rig.where)
    rig.send(OTHER, 1, outside=False)
    assert rig.begin() == {OTHER: 1}
    rig.send(HUNG, 10)
    assert len(rig.window.surplus(MANY)) == 10
    rig.window.look(100.0)
    rig.window.look(100.0 + STILL_SECONDS + SLOW_SECONDS)  # nothing was drawn, so the engine has no room
    assert rig.window.wants_pause(rig.where)


class Outside(OneParty):
    """A sharing in which every record belongs to one party and may wait for servers."""

    def assess(self, record: Record) -> None:
        record.party = record.outside = HUNG


def test_the_stage_counts_running_records_until_they_end_or_their_partition_is_lost() -> None:
    stage, loop, partition = stage_with(
        Intake(), HandClock(), parked=20, pace=Desk(100), sharing=Outside(), limits=Limits(records=8)
    )
    stage.dispatch()
    (([*batch], _),) = loop.calls
    assert len(batch) == 6
    stage.transactions.completions.put([Handled(partition, batch[0][1], (), 0.0)])
    stage.collect()
    assert stage.partitions.load.outside == {HUNG: 5}
    stage.lost([partition.id])
    assert not stage.partitions.load.outside


def escaped(key: str, places: set[int], digits: str) -> str:
    """Return the key with JSON escapes instead of the letters at these places.

    `digits` is the format of the hexadecimal digits: `x` for lower case, `X` for upper case.
    """
    return "".join(f"\\u{ord(each):04{digits}}" if place in places else each for place, each in enumerate(key))


@settings(max_examples=drawn(100))
@given(
    st.sampled_from(["image_url", "sources", "payload_url"]),
    st.sets(st.integers(0, 10)),
    st.text(),
    st.sampled_from("xX"),
)
async def test_each_job_with_something_to_fetch_counts_however_its_fields_are_written(
    key: str, places: set[int], text: str, digits: str
) -> None:
    if key == "sources":
        job: object = {"prompt": text, "sources": {"urls": ["https://example.com/"]}}
    elif key == "payload_url":
        job = {"payload_url": "https://example.com/question.json", "custom_id": text}
    else:
        content = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]
        job = {"messages": [{"role": "user", "content": content}, {"role": "user", "content": text}]}
    written = json.dumps(job).replace(f'"{key}"', f'"{escaped(key, places, digits)}"')
    async with working() as worker:
        assert assessed(worker, job_record(written.encode())).outside is not None


async def test_a_job_of_text_waits_for_no_server() -> None:
    async with working() as worker:
        assert assessed(worker, job_record({"prompt": "Naïve sources of an image_url"})).outside is None


# -- lone tenant -----------------------------------------------------------------------------------------------------
JOBS = 3_000
"""Jobs in each partition: six times the number that may be parked."""
PARTITIONS = 2
"""Number of records that fit into the queue."""
MORE_THAN_ARE_PARKED = 5_000
FETCHED = 400
"""Records of one fetch from a partition."""


class Engine(Desk):
    """A pace with as much room as the test sets."""

    free = 0

    def room(self) -> int:
        return self.free

    @property
    def paced(self) -> bool:
        return False


class Log(Intake):
    """An intake over partitions with JOBS records each, which pauses and seeks on request."""

    def __init__(self, clock: HandClock) -> None:
        super().__init__()
        self._clock = clock
        self._positions = {("requests", number): 0 for number in range(PARTITIONS)}
        self._fetched: set[PartitionId] = set(self._positions)

    def consume(self, limit: int, timeout_seconds: float) -> tuple[list[Record], list[tuple[str, int, int]]]:
        self._clock.now += timeout_seconds
        records = []
        for place in sorted(self._fetched):
            start = self._positions[place]
            self._positions[place] = min(JOBS, start + min(limit, FETCHED))
            records += [Record(*place, offset, b"") for offset in range(start, self._positions[place])]
        return records, []

    def flow(self, pause: Sequence[PartitionId], resume: Sequence[tuple[str, int, int | None]]) -> bool:
        self._fetched.difference_update(pause)
        for topic, number, offset in resume:
            self._fetched.add((topic, number))
            if offset is not None:
                self._positions[topic, number] = offset
        return True


class Committing(Settler):
    """A settler whose commit of a batch has ended at the next call; while `stuck`, the settler commits no batch."""

    stuck = False
    resting = False
    _batch: Batch | None = None

    def settle(self, batch: Batch) -> None:
        batch.progress = {partition: partition.progress(offsets) for partition, offsets in batch.offsets.items()}
        self._batch, self.state = batch, SettlerState.SETTLING

    def settled(self) -> Batch | None:
        if self.stuck:
            return None
        self.state = SettlerState.READY
        return self._batch


class Loop:
    """A loop that completes started and deferred records at once. A `busy` loop completes no deferred record."""

    busy = False

    def __init__(self) -> None:
        self.done: list[tuple[int, int]] = []
        self.deferred: list[tuple[int, int]] = []
        self.stage: Stage | None = None

    def call_soon_threadsafe(self, call: Callable[..., None], *args: Any) -> None:
        assert self.stage is not None
        batch: list[tuple[Partition, Record]] = args[0]
        deferred = call == self.stage.proxy.runner.defer
        if deferred and self.busy:
            return
        if deferred:
            self.stage.proxy.runner.deferred += len(batch)
        else:
            self.stage.proxy.runner.begun += len(batch)
        ended = self.deferred if deferred else self.done
        ended += [(record.partition, record.offset) for _, record in batch]
        for where, taken in batch:
            self.stage.transactions.completions.put([Handled(where, taken, (), 0.0, deferred=deferred)])


class Flood:
    """A stage with a single tenant, who has JOBS jobs in each partition."""

    def __init__(self) -> None:
        self.clock, self.loop, self.engine, self.settler = HandClock(), Loop(), Engine(), Committing()
        limits = Limits(records=512, bytes=3 * ROOM * OWN_BYTES)
        log, sharing = Log(self.clock), OneParty()
        self.stage, _ = bare_stage(log, self.clock, self.settler, self.engine, sharing, limits=limits)
        told: Any = self.loop
        self.stage.proxy.loop, self.loop.stage = told, self.stage
        assert isinstance(self.stage.proxy.runner, Runner)
        self.stage.assigned([("requests", number) for number in range(PARTITIONS)])

    def run(self, rounds: int, free: int) -> None:
        """Run some rounds while the engine has room for `free` jobs in each."""
        self.engine.free = free
        for _ in range(rounds):
            self.stage.round()
            self.clock.now += 0.01


EACH = [(number, offset) for number in range(PARTITIONS) for offset in range(JOBS)]
PACES = st.lists(
    st.tuples(st.integers(1, 200), st.sampled_from([0, 0, 1, 64, MORE_THAN_ARE_PARKED])), min_size=1, max_size=12
)
"""Pairs: a number of rounds, and the number of jobs that the engine takes in each of these rounds."""


@settings(
    max_examples=drawn(20),
    deadline=None,
    phases=(Phases.explicit, Phases.reuse, Phases.generate),
)  # `shrink` is left out, because it would take too long
@given(PACES)
def test_each_job_is_handled_or_deferred_once_whatever_the_engines_pace(paces: list[tuple[int, int]]) -> None:
    flood = Flood()
    for rounds, free in [(150, 0), *paces, (400, MORE_THAN_ARE_PARKED)]:
        flood.run(rounds, free)
    assert sorted([*flood.loop.done, *flood.loop.deferred]) == EACH


def test_a_flood_before_a_slow_engine_is_read_to_its_end_at_once() -> None:
    flood = Flood()
    flood.run(200, 1)
    assert len(flood.loop.deferred) == len(EACH) - len(flood.loop.done) - flood.stage.dispatcher.window.queued
    assert all(partition.ledger.next_offset == JOBS for partition in flood.stage.partitions.held.values())
    assert min(flood.loop.deferred) > max(each for each in flood.loop.done if each[0] == 0)


def test_a_flood_is_not_deferred_before_a_fast_engine_nor_while_the_engine_is_away() -> None:
    for free in (256, 0):
        flood = Flood()
        flood.run(400, free)
        assert flood.loop.deferred == []


def test_nothing_is_fetched_and_no_more_is_deferred_until_the_loop_has_deferred_the_last_surplus() -> None:
    flood = Flood()
    flood.run(200, 1)
    assert len(flood.loop.deferred) > MOST_DEFERRED
    flood = Flood()
    flood.loop.busy = True
    flood.run(200, 1)
    fetched = sum(partition.ledger.next_offset for partition in flood.stage.partitions.held.values())
    parked = flood.stage.dispatcher.window.queued
    assert 0 < fetched - len(flood.loop.done) - parked <= MOST_DEFERRED
    assert parked <= ROOM + PARTITIONS * FETCHED
    handed_over = len(flood.loop.done)
    flood.run(100, 1)
    assert len(flood.loop.done) == handed_over + 100, "the engine goes on meanwhile"


def test_deferred_jobs_that_wait_to_be_settled_keep_no_job_from_the_engine() -> None:
    flood = Flood()
    while not flood.loop.deferred:
        flood.run(1, 1)
    flood.settler.stuck, handed_over = True, len(flood.loop.done)
    flood.run(50, 1)
    assert len(flood.stage.transactions.pending) > 3 * flood.stage.dispatcher.window.limits.records
    assert len(flood.loop.done) == handed_over + 50


# -- token costs -----------------------------------------------------------------------------------------------------
ACME, GLOBEX = ("tenant", b"acme"), ("tenant", b"globex")


async def test_a_job_costs_the_tokens_of_its_prompt_and_its_tenants_mean_answer_and_then_its_real_ones() -> None:
    async with working() as worker:
        long, short = job_record({"prompt": "word " * 400}, ACME), job_record({"prompt": "word"}, GLOBEX)
        for job in (long, short):
            assert assessed(worker, job).cost == pytest.approx(len(job.value) / BYTES_A_TOKEN)
        for _ in range(100):
            await worker.outputs(long)
            await worker.outputs(short)
        assert long.spent == 800  # the echo engine answers with the 400 words of the question
        assert short.spent == 2
        assert assessed(worker, long).cost == pytest.approx(len(long.value) / BYTES_A_TOKEN + 400, rel=0.05)
        assert assessed(worker, short).cost == pytest.approx(len(short.value) / BYTES_A_TOKEN + 1, abs=5)


async def test_a_job_that_reaches_no_engine_costs_nothing() -> None:
    async with working() as worker:
        for job in (
            job_record(b"no job"),
            job_record({"prompt": "x", "model_id": "absent"}),
            job_record({"prompt": ""}),
        ):
            await worker.outputs(job)
            assert job.spent == 0


async def test_a_tenant_with_twice_the_weight_pays_half() -> None:
    async with working(tenant_weights={"acme": 2.0}) as worker:
        of_acme, of_globex = job_record({"prompt": "a b c"}, ACME), job_record({"prompt": "a b c"}, GLOBEX)
        assert assessed(worker, of_acme).cost * 2 == assessed(worker, of_globex).cost
        for job in (of_acme, of_globex):
            await worker.outputs(job)
        assert (of_acme.spent, of_globex.spent) == (3, 6)


async def test_a_job_with_an_earlier_deadline_is_more_urgent() -> None:
    async with working() as worker:
        usual = round(1000 * DEFAULT_TTL_SECONDS)
        for job, left_ms in (
            (job_record({"prompt": "x"}), usual),
            (job_record({"prompt": "x", "ttl_seconds": 60}), 60_000),
            (job_record({"prompt": 'Say "ttl_seconds": 5'}), usual),
            (job_record({"prompt": "x"}, ("deadline", b"soon")), usual),
        ):
            assert assessed(worker, job).urgency - job.timestamp_ms == left_ms
        stated = job_record({"prompt": "x"}, ("deadline", b"1700000000000"))
        assert assessed(worker, stated).urgency == 1_700_000_000_000


async def test_a_job_with_a_higher_priority_is_more_urgent_whatever_its_deadline() -> None:
    async with working() as worker:
        jobs = [
            job_record({"prompt": "x", "priority": 9}, ("deadline", b"999999999999999")),
            job_record({"prompt": "x"}, ("priority", b"5"), ("deadline", b"999999999999999")),
            job_record({"prompt": "x", "priority": 1}),
            job_record({"prompt": "x", "ttl_seconds": 1}),
            job_record({"prompt": 'Say "priority": 9'}),
            job_record({"prompt": "x", "priority": 9}, ("priority", b"none"), ("deadline", b"999999999999999")),
        ]
        assert (ranks := [assessed(worker, job).urgency for job in jobs]) == sorted(ranks)
        assert ranks[2] < ranks[3]


@given(st.lists(st.tuples(st.binary(max_size=3), st.integers(0, 2**31 - 1)), max_size=60))
def test_a_mean_lies_between_zero_and_its_answers(answers: list[tuple[bytes, int]]) -> None:
    known = AnswerTokens()
    for tenant, tokens in answers:
        known.add(tenant, tokens)
    lengths = [0.0, *(float(tokens) for _, tokens in answers)]
    for tenant in {*(tenant for tenant, _ in answers), b"other"}:
        assert min(lengths) * 0.999 <= known.mean(tenant) <= max(lengths) * 1.001


def test_only_the_last_tenants_are_remembered() -> None:
    known = AnswerTokens()
    known.add(b"first", 1_000_000)
    for number in range(MOST_TENANTS - 1):
        known.add(b"%d" % number, 0)
    assert known.mean(b"first") > 1000 * known.mean(b"other")
    known.add(b"last", 0)
    assert known.mean(b"first") == known.mean(b"other")


async def test_a_tenant_that_comes_during_a_workers_first_answers_gets_its_share_of_the_freed_places() -> None:
    where = partition()
    flood, few = job_record({"prompt": "word"}, ACME), job_record({"prompt": "word"}, GLOBEX)
    async with working() as worker:
        lot = FairQueue(QUEUE_BYTES, 512)

        def park(sent: Record) -> None:
            lot.add(where, replace(assessed(worker, sent), offset=next(offsets)), sent.party)

        offsets = count()
        for _ in range(300):
            park(flood)
        running = deque(lot.draw(64, always))
        for _ in range(128):
            _, ended = running.popleft()
            await worker.outputs(ended)
            lot.correct(ended.party, (ended.spent or 0) - ended.cost)
            park(few)
            running += lot.draw(1, always)
    begun_later = Counter(one.party for _, one in running)
    assert begun_later[b"globex"] >= 16
