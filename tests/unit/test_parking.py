"""Parking: turns of the parties, records beyond a party's share, and the later place's share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from workers.stage.parking import MOST_FORMER, SLOW_SECONDS, STILL_SECONDS, TIGHT_SECONDS, Lot
from workers.stage.partition import Partition
from workers.stage.party_queue import Parked
from workers.stage.progress import Progress
from workers.stage.record import Record
from workers.stage.sharing import Party, Place
from workers.stage.window import LEAST_PARKED, Limits, Window

A, B, C = b"a", b"b", b"c"
MANY = 1_000_000


def partition(number: int = 0, *, place: Place = Place.FIRST) -> Partition:
    made = Partition(place.name, number, 1, 0.0, place)
    made.open(Progress(0), 0)
    return made


class Sender:
    """A sender that appends parties' records to partitions."""

    def __init__(self, *partitions: Partition) -> None:
        self._partitions = partitions
        self._sent = Counter[Partition]()

    def send(self, count: int, size: int = 0, cost: float = 1.0, urgency: int = 0) -> list[Parked]:
        sent = []
        for index in range(count):
            where = self._partitions[index % len(self._partitions)]
            value = b"x" * size
            sent.append(
                (where, Record(where.topic, where.number, self._sent[where], value, cost=cost, urgency=urgency))
            )
            self._sent[where] += 1
        return sent


def lot_with(lines: dict[Party, list[Parked]], capacity: int = 1000, capacity_bytes: int = 10**9) -> Lot:
    lot = Lot(capacity, capacity_bytes)
    for party, records in lines.items():
        for where, record in records:
            lot.add(where, record, party)
    return lot


def always(partition: Partition, records: Sequence[Record], most: int) -> int:
    return most


def parties(drawn: list[Parked], lines: dict[Party, list[Parked]]) -> list[Party]:
    """The party of each drawn record."""
    owners = {id(record): party for party, records in lines.items() for _, record in records}
    return [owners[id(record)] for _, record in drawn]


# -- turns ---------------------------------------------------------------------------------------------------------


def test_parties_take_turns_whatever_the_order_and_the_number_in_which_they_came() -> None:
    sender = Sender(partition(0), partition(1))
    lines: dict[Party, list[Parked]] = {A: sender.send(500), B: sender.send(3), C: sender.send(20)}
    drawn = lot_with(lines).draw(30, always)
    assert parties(drawn, lines)[:9] == [A, B, C] * 3
    assert Counter(parties(drawn, lines)) == {A: 14, C: 13, B: 3}


def test_turns_go_on_where_they_stopped_when_places_become_free_one_by_one() -> None:
    sender = Sender(partition())
    lines: dict[Party, list[Parked]] = {A: sender.send(50), B: sender.send(50), C: sender.send(50)}
    lot = lot_with(lines)
    drawn = [one for _ in range(12) for one in lot.draw(1, always)]
    assert parties(drawn, lines) == [A, B, C] * 4


def test_a_single_party_gets_all_places_from_all_partitions_alike() -> None:
    halves = partition(0), partition(1)
    lot = lot_with({A: Sender(*halves).send(100)})
    drawn = lot.draw(40, always)
    assert Counter(where for where, _ in drawn) == {halves[0]: 20, halves[1]: 20}
    one_by_one = [lot.draw(1, always)[0][0] for _ in range(4)]
    assert one_by_one in ([*halves, *halves], [*reversed(halves), *reversed(halves)])


def test_long_prompts_get_as_many_turns_as_they_cost() -> None:
    sender = Sender(partition())
    lines: dict[Party, list[Parked]] = {A: sender.send(40, cost=4.0), B: sender.send(400)}
    drawn = lot_with(lines).draw(50, always)
    assert Counter(parties(drawn, lines)) == {A: 10, B: 40}


def test_a_queue_without_a_ready_record_saves_up_no_service_and_delays_no_other() -> None:
    ready, not_yet = partition(0), partition(1)
    waiting, running = Sender(not_yet).send(10, cost=3.0), Sender(ready).send(10)
    lines: dict[Party, list[Parked]] = {A: waiting, B: running}
    lot = lot_with(lines)
    assert parties(lot.draw(8, lambda where, _, most: most if where is ready else 0), lines) == [B] * 8
    later = parties(lot.draw(3, always), lines)
    # If a queue without a ready record saved up turns, A would now have three turns before B.
    assert sorted(filter(None, later)) == [A, B, B]


def test_a_record_that_is_not_ready_stops_what_is_behind_it_in_its_partition() -> None:
    where = partition()
    sent = Sender(where).send(10)
    lot = lot_with({None: sent})

    def before_the_fourth(_: Partition, records: Sequence[Record], most: int) -> int:
        return min(most, sum(record.offset < 4 for record in records))

    assert lot.draw(10, before_the_fourth) == sent[:4]
    assert lot.draw(10, before_the_fourth) == []
    assert lot.first(where) is sent[4][1]


def test_a_returning_party_has_saved_up_nothing_and_still_owes_its_excess() -> None:
    sender = Sender(partition())
    lines: dict[Party, list[Parked]] = {A: sender.send(100), B: sender.send(1, cost=10.0)}
    lot = lot_with(lines)
    assert Counter(parties(lot.draw(3, always), lines))[B] == 1
    more: dict[Party, list[Parked]] = {B: sender.send(50), C: sender.send(50)}
    for party, records in more.items():
        for where, record in records:
            lot.add(where, record, party)
    lines = {A: lines[A], B: lines[B] + more[B], C: more[C]}
    assert B not in parties(lot.draw(16, always), lines), "B has had ten units, and A only two"
    assert Counter(parties(lot.draw(30, always), lines)) == {A: 10, B: 10, C: 10}


def test_a_new_party_begins_where_the_others_are() -> None:
    sender = Sender(partition())
    lines: dict[Party, list[Parked]] = {A: sender.send(100), C: sender.send(50)}
    lot = lot_with({A: lines[A]})
    lot.draw(50, always)
    for where, record in lines[C]:
        lot.add(where, record, C)
    assert Counter(parties(lot.draw(20, always), lines)) == {A: 10, C: 10}


def test_a_cost_that_turns_out_higher_or_lower_is_corrected_also_for_a_party_that_is_gone() -> None:
    sender = Sender(partition())
    lines: dict[Party, list[Parked]] = {A: sender.send(100), B: sender.send(100)}
    lot = lot_with(lines)
    lot.draw(20, always)
    lot.correct(A, 10.0)
    assert Counter(parties(lot.draw(10, always), lines)) == {B: 10}
    lot.correct(A, -6.0)
    assert Counter(parties(lot.draw(6, always), lines)) == {A: 6}
    lot.correct(C, 8.0)
    lines[C] = sender.send(10)
    for where, record in lines[C]:
        lot.add(where, record, C)
    assert Counter(parties(lot.draw(14, always), lines)) == {A: 7, B: 7}


def test_an_urgent_record_is_the_next_of_its_party_and_takes_no_other_partys_turn() -> None:
    one, two = partition(0), partition(1)
    usual = Sender(one, two).send(20, urgency=1000)
    lines: dict[Party, list[Parked]] = {A: usual, B: Sender(partition(2)).send(20, urgency=1)}
    lot = lot_with(lines)
    urgent = (two, Record("first", 1, 99, b"", urgency=5))
    lot.add(*urgent, A)
    drawn = lot.draw(4, always)
    assert Counter(where.number == 2 for where, _ in drawn) == {True: 2, False: 2}
    assert next(each for each in drawn if each[0].number != 2) == urgent


@given(st.lists(st.integers(0, 5), max_size=60))
def test_a_party_is_drawn_by_urgency_and_then_in_order(urgencies: list[int]) -> None:
    where = partition()
    sender = Sender(where)
    sent = [one for urgency in urgencies for one in sender.send(1, urgency=urgency)]
    drawn = [record for _, record in lot_with({A: sent}).draw(100, always)]
    assert drawn == sorted((record for _, record in sent), key=lambda record: (record.urgency, record.offset))


def test_many_parties_that_come_once_leave_nothing_behind() -> None:
    where = partition()
    sender, lot = Sender(where), Lot(10, 10**9)
    for number in range(3 * MOST_FORMER):
        [(_, record)] = sender.send(1, cost=float(1 + number % 3))
        lot.add(where, record, b"%d" % number)
        assert len(lot.draw(1, always)) == 1
    assert lot.parked == 0


class Sizes:
    """Hypothesis strategies: the costs of each party's records."""

    lines = st.dictionaries(st.sampled_from([A, B, C]), st.lists(st.integers(1, 10), max_size=30), min_size=1)


@given(Sizes.lines, st.lists(st.integers(0, 9), max_size=40))
def test_everything_is_drawn_once_in_order_and_no_waiting_party_is_left_behind(
    sizes: dict[bytes, list[int]], rooms: list[int]
) -> None:
    where = partition()
    lines: dict[Party, list[Parked]] = {}
    sender = Sender(where)
    for name, lengths in sizes.items():
        lines[name] = [one for cost in lengths for one in sender.send(1, cost=float(cost))]
    lot = lot_with(lines)
    dearest = max((record.cost for records in lines.values() for _, record in records), default=0.0)
    drawn: list[Parked] = []
    for room in [*rooms, 1000]:
        got = lot.draw(room, always)
        assert len(got) == min(room, sum(map(len, lines.values())) - len(drawn))
        drawn += got
        spent = {party: _cost_of(drawn, party, lines) for party in lines}
        waiting = [party for party in lines if _count_of(drawn, party, lines) < len(lines[party])]
        # By start-time fair queueing, the costs of two parties that always wait differ by at most the costliest record.
        for party in waiting:
            assert all(spent[party] + dearest >= spent[other] for other in waiting)
    for sent in lines.values():
        assert [one for one in drawn if one in sent] == sent
    assert (lot.parked, lot.bytes, where.parked) == (0, 0, 0)


def _cost_of(drawn: list[Parked], party: Party, lines: dict[Party, list[Parked]]) -> float:
    mine = {id(record) for _, record in lines[party]}
    return sum(record.cost for _, record in drawn if id(record) in mine)


def _count_of(drawn: list[Parked], party: Party, lines: dict[Party, list[Parked]]) -> int:
    mine = {id(record) for _, record in lines[party]}
    return sum(id(record) in mine for _, record in drawn)


# -- beyond a share ------------------------------------------------------------------------------------------------


def shared(records: int = LEAST_PARKED, later_share: float = 0.1) -> Window:
    return Window(Limits(records=records), later_share)


def park(window: Window, records: list[Parked], party: Party) -> list[Parked]:
    """Park the records one by one; return the surplus: records beyond a party's share."""
    surplus = []
    for where, record in records:
        where.ledger.take(record.offset)
        window.park(where, record, party)
        surplus += window.surplus(MANY)
    window.look(0.0)
    window.look(TIGHT_SECONDS)
    return surplus


def test_a_party_that_is_alone_is_not_beyond_its_share_while_the_lot_moves_fast_or_not_at_all() -> None:
    window, where = shared(), partition()
    assert park(window, Sender(where).send(3 * LEAST_PARKED), A) == []
    assert window.wants_pause(where)
    window.look(TIGHT_SECONDS + SLOW_SECONDS)  # nothing was drawn, so the engine is away
    assert window.surplus(MANY) == []
    assert window.wants_pause(where)
    window.draw(LEAST_PARKED, always)
    window.look(TIGHT_SECONDS + 2 * SLOW_SECONDS)  # a lot's worth of records was drawn, and the lot is still full
    assert window.surplus(MANY) == []
    window.draw(LEAST_PARKED - 1, always)
    park(window, Sender(where).send(2 * LEAST_PARKED), A)
    window.look(TIGHT_SECONDS + 3 * SLOW_SECONDS)  # less than a lot's worth of records was drawn
    assert len(window.surplus(7)) == 7


def test_a_party_alone_in_a_slow_lot_gives_way_at_its_end_until_the_lot_is_half_empty() -> None:
    window, where = shared(), partition()
    sender = Sender(where)
    park(window, sender.send(LEAST_PARKED), A)
    window.draw(1, always)
    window.look(TIGHT_SECONDS + SLOW_SECONDS)
    assert not window.wants_pause(where)
    assert not window.tight
    more = sender.send(10)
    for owner, record in more:
        window.park(owner, record, A)
    assert window.surplus(MANY) == more[:0:-1]
    window.look(TIGHT_SECONDS + SLOW_SECONDS + STILL_SECONDS)
    assert window.wants_pause(where), "an engine that is away makes no party wait longer"
    window.draw(LEAST_PARKED // 2, always)
    window.look(TIGHT_SECONDS + SLOW_SECONDS + STILL_SECONDS + 1)
    assert not window.wants_pause(where)
    for owner, record in sender.send(LEAST_PARKED):
        window.park(owner, record, A)
    window.look(TIGHT_SECONDS + SLOW_SECONDS + STILL_SECONDS + 1.1)
    assert window.surplus(MANY) == []


def test_the_largest_party_yields_to_a_newcomer_until_both_have_as_much() -> None:
    window, where = shared(), partition()
    sender = Sender(where)
    flood = sender.send(LEAST_PARKED)
    assert park(window, flood, A) == []
    assert park(window, sender.send(20), B) == flood[:-21:-1]  # the newest of the flood are removed
    assert not window.wants_pause(where)  # the flood does not keep later records out
    more = sender.send(100)
    assert park(window, more, A) == more  # for each record of A that comes, one of A's is removed
    others = sender.send(1000)
    beyond = park(window, others, B)
    assert sum(one in others for one in beyond) == 1000 + 20 - LEAST_PARKED // 2
    assert window.parked == LEAST_PARKED


def test_a_party_with_one_record_keeps_it() -> None:
    window, sender = shared(), Sender(partition())
    for number in range(LEAST_PARKED):
        assert park(window, sender.send(1), b"%d" % number) == []
    assert park(window, sender.send(1), b"one more") == []


def test_bytes_are_shared_too() -> None:
    window, sender = Window(Limits(bytes=3_000_000), 0.1), Sender(partition())
    big = sender.send(10, size=100_000)
    assert park(window, big, A) == []
    assert park(window, sender.send(1, size=100_000), B) == [big[-1]]


def test_records_in_the_later_place_are_never_beyond_their_share() -> None:
    window, where = shared(), partition(place=Place.LATER)
    sender = Sender(where)
    for party in (A, B):
        assert park(window, sender.send(LEAST_PARKED), party) == []
    assert window.wants_pause(where)


def test_without_sharing_nothing_is_beyond_a_share() -> None:
    window, where = Window(Limits(records=LEAST_PARKED)), partition()
    assert park(window, Sender(where).send(2 * LEAST_PARKED), None) == []
