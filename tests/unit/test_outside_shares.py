"""The window's shares of parties whose records may wait for servers outside the fleet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.hand_clock import HandClock
from tests.drawn import drawn
from tests.unit.echo_worker import record, working
from tests.unit.one_party import OneParty
from tests.unit.stage_rig import Desk, Intake, stage_with
from tests.unit.test_parking import always, partition
from workers.stage.outside import KEPT, OutsideTurns
from workers.stage.parking import SLOW_SECONDS, STILL_SECONDS, TIGHT_SECONDS
from workers.stage.partition import Partition
from workers.stage.record import Headers, Record
from workers.stage.runner import Handled
from workers.stage.window import LEAST_PARKED, Limits, Window

HUNG, OTHER = b"hung", b"other"
MANY = 1_000_000


class Rig:
    """A window with one partition. A test sends records to the partition, begins them and ends them."""

    def __init__(self, records: int) -> None:
        self.window = Window(Limits(records=records), 0.1)
        self.where = partition()
        self.running: list[tuple[bytes, Record]] = []
        self._sent: list[tuple[bytes, Record]] = []

    def send(self, party: bytes, count: int, *, outside: bool = True) -> None:
        for _ in range(count):
            sent = Record("requests", 0, len(self._sent), b"", outside=party if outside else None)
            self._sent.append((party, sent))
            self.where.ledger.take(sent.offset)
            self.window.park(self.where, sent, party)

    def begin(self) -> Counter[bytes]:
        """Begin as many records as may run; return their number by party."""
        before = len(self.running)
        turns = OutsideTurns(self.window, always)

        def ready(where: Partition, records: Sequence[Record], most: int) -> int:
            allowed = turns.ready(where, records, most)
            assert allowed == self._may_begin(records[0].outside)
            self.running += [self._sent[records[0].offset]] * allowed
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
    rig.where = (
        partition()
    )  # use a second partition, since in the first these records would wait behind the earlier ones
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


def test_a_lot_full_of_held_back_records_is_read_on_for_as_long_as_the_handler_has_room() -> None:
    rig = Rig(8)
    rig.send(HUNG, LEAST_PARKED + 6)
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

    def party(self, headers: Headers | None) -> bytes:
        return HUNG

    def may_wait(self, record: Record) -> bool:
        return True


def test_the_stage_counts_running_records_until_they_end_or_their_partition_is_lost() -> None:
    stage, loop, partition = stage_with(
        Intake(), HandClock(), parked=20, pace=Desk(100), sharing=Outside(), limits=Limits(records=8)
    )
    stage.dispatch()
    (([*batch], _),) = loop.calls
    assert len(batch) == 6
    stage.transactions.completions.put(Handled(partition, batch[0][1], (), 0.0))
    stage.collect()
    assert stage.held.load.outside == {HUNG: 5}
    stage.lost([partition.id])
    assert not stage.held.load.outside


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
        assert worker.handler.sharing.may_wait(record(written.encode()))


async def test_a_job_of_text_waits_for_no_server() -> None:
    async with working() as worker:
        assert not worker.handler.sharing.may_wait(record({"prompt": "Naïve sources of an image_url"}))
