"""The relay, its lease and its position on a real store, with an outlet that keeps records in memory for Kafka."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest.mock import patch

import pytest
from confluent_kafka import KafkaError, KafkaException
from sqlalchemy import Connection, select

from gateway.accept.acceptance import Acceptance
from gateway.accept.outbox import put_record
from gateway.accept.outlet import RecordOutlet
from gateway.accept.position import adopt, forget, waiting
from gateway.accept.relay import BEAT_SECONDS, KEEP_SECONDS, MOST_ROWS, STALE_SECONDS, FreshRows, Lease, Relay
from gateway.store.settings import StoreSettings
from gateway.store.store import SILENT_SECONDS, Store, StoreAway
from gateway.store.tables import outbox
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.integration.gateway.running_parts import running_parts
from tests.unit.gateway_rig import empty_store

TOPIC = "job_control"
WAIT_SECONDS = 30


class Put(NamedTuple):
    """One transaction: its records, the position after them, and the rows that the outbox had before it."""

    values: list[bytes]
    position: int
    kept: list[int]


class Outlet:
    """The relay's side of a Kafka in memory, which holds the relay at each look at an outbox without new rows.

    When a look ends, the clock goes on by `step` seconds.
    """

    def __init__(self, store: Store, clock: HandClock, step: float = 1.0) -> None:
        self.puts: list[Put] = []
        self._store = store
        self._clock = clock
        self._step = step
        self._looks = threading.Semaphore(0)
        self._go_on = threading.Semaphore(0)
        self._is_held = False

    def open(self) -> int | None:
        return self.puts[-1].position if self.puts else None

    def put(self, rows: Sequence[Any], position: int) -> None:
        self.puts.append(Put([row.value for row in rows], position, numbers(self._store)))

    def listen(self) -> None:
        self._looks.release()
        self._go_on.acquire()
        self._clock.sleep(self._step)

    def idle(self, looks: int = 1) -> None:
        """Let the relay go on to its next look, so many times; the relay is held at the last one."""
        for _ in range(looks):
            if self._is_held:
                self._go_on.release()
            self._is_held = self._looks.acquire(timeout=WAIT_SECONDS)
            assert self._is_held, "the relay finds no empty outbox"

    def close(self) -> None:
        pass

    def free(self) -> None:
        """Hold the relay at no further look."""
        self._go_on.release(1_000_000)


@contextmanager
def relaying(store: Store, outlet: Outlet, clock: HandClock) -> Iterator[None]:
    with (
        patch("gateway.accept.relay.RecordOutlet", lambda *_: cast(RecordOutlet, outlet)),
        patch("gateway.accept.relay.POLL_SECONDS", 0.001),
        running_parts(Relay(store, KafkaSettings(), clock, Metrics())),
    ):
        try:
            yield
        finally:
            outlet.free()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Store]:
    """An SQLite store with one connection."""
    file = tmp_path / "empty.db"
    file.write_bytes(empty_store())
    store = Store.open(f"sqlite:///{file}")
    yield store
    store.close()


def accept(store: Store, *values: bytes) -> None:
    for value in values:
        store.write_now(lambda connection, value=value: put_record(connection, TOPIC, b"k", value))  # type: ignore[misc]


def numbers(store: Store) -> list[int]:
    """The numbers of the outbox's rows, after all submitted changes."""
    store.write_now(lambda connection: None)
    return list(store.read_now(lambda connection: connection.scalars(select(outbox.c.number).order_by("number")).all()))


def eventually(holds: Callable[[], bool], lacking: str) -> None:
    clock = SystemClock()
    end = clock.monotonic() + WAIT_SECONDS
    while not holds():
        assert clock.monotonic() < end, lacking
        clock.sleep(0.01)


def test_a_lease_passes_on_when_its_holder_leaves_or_is_silent(store: Store, clock: HandClock) -> None:
    first, second = Lease(store, clock), Lease(store, clock)
    assert (second.held(), first.held()) == (True, True)  # each takes over at its start
    for _ in range(9):
        clock.sleep(BEAT_SECONDS)
        assert (first.kept(), second.held()) == (True, False)
    clock.sleep(STALE_SECONDS)
    assert (second.held(), first.held(), first.kept()) == (True, False, False)
    second.leave()
    clock.sleep(BEAT_SECONDS)
    assert first.kept()


def test_a_relay_that_lost_its_lease_does_not_end_its_successors(store: Store, clock: HandClock) -> None:
    first, second = Lease(store, clock), Lease(store, clock)
    assert (first.held(), second.held()) == (True, True)
    first.leave()
    assert (first.held(), second.held()) == (False, True)


def test_the_rows_below_the_position_are_deleted_and_no_other_row(store: Store) -> None:
    accept(store, b"one", b"two", b"three", b"four")
    assert store.write_now(lambda connection: adopt(connection, 2)) == (2, False)
    assert numbers(store) == [2, 3, 4]
    store.write_now(lambda connection: forget(connection, 4))
    assert numbers(store) == [4]
    assert store.write_now(lambda connection: adopt(connection, None)) == (4, False)
    assert numbers(store) == [4]


def test_a_database_that_hangs_refuses_work_until_it_answers(
    empty: Store, clock: HandClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    acceptance = Acceptance(empty, KafkaSettings(), StoreSettings(), clock, Metrics())
    empty.hold.release(0)
    answers, asked, read = threading.Event(), threading.Event(), empty.read_now

    def hang(query: Callable[[Connection], tuple[int, int]]) -> tuple[int, int]:
        asked.set()
        answers.wait(WAIT_SECONDS)
        return read(query)

    acceptance.judge()
    assert acceptance.reasons() == []
    monkeypatch.setattr(empty, "read_now", hang)
    looking = threading.Thread(target=acceptance._look)
    looking.start()
    assert asked.wait(WAIT_SECONDS)
    clock.sleep(SILENT_SECONDS + 1)
    acceptance.judge()
    assert acceptance.reasons() == ["no work is accepted: the store does not answer"]
    with pytest.raises(StoreAway):
        asyncio.run(empty.read(waiting))
    answers.set()
    looking.join()
    acceptance.judge()
    assert acceptance.reasons() == []
    assert [str(record.msg).partition(",")[0] for record in caplog.records] == ["{'action': 'store-away'"]


def test_a_database_that_takes_no_change_refuses_work_until_it_does(empty: Store, clock: HandClock) -> None:
    acceptance = Acceptance(empty, KafkaSettings(), StoreSettings(), clock, Metrics())
    empty.hold.release(0)
    empty.write_now(lambda connection: connection.exec_driver_sql("PRAGMA query_only=ON") and None)
    with pytest.raises(StoreAway):
        accept(empty, b"a")
    acceptance._look()
    acceptance.judge()
    assert acceptance.reasons() == ["no work is accepted: the store did not take a change: it is read-only"]
    empty.read_now(lambda connection: connection.exec_driver_sql("PRAGMA query_only=OFF") and None)
    acceptance._look()
    acceptance.judge()
    assert acceptance.reasons() == []


@pytest.mark.parametrize("rows", [0, 2])
def test_a_restored_store_gives_no_number_that_kafka_has(store: Store, rows: int) -> None:
    accept(store, *[b"restored"] * rows)
    assert store.write_now(lambda connection: adopt(connection, 50)) == (50, True)
    accept(store, b"new")
    assert numbers(store) == [50]
    assert store.write_now(lambda connection: adopt(connection, 50)) == (50, False)
    assert numbers(store) == [50]


def test_rows_are_deleted_only_after_a_later_commit(store: Store, clock: HandClock) -> None:
    """If a cluster's only broker is killed, Kafka may undo the last commit, and only the outbox has its records."""
    accept(store, b"one", b"two")
    outlet = Outlet(store, clock)
    with relaying(store, outlet, clock):
        outlet.idle()
        assert outlet.puts == [Put([b"one", b"two"], 3, [1, 2]), Put([], 3, [1, 2])]
        assert numbers(store) == []
        accept(store, b"three")
        outlet.idle()
        assert outlet.puts[2:] == [Put([b"three"], 4, [3]), Put([], 4, [3])]
        assert numbers(store) == []


def test_an_idle_relay_commits_its_position_again_before_kafka_forgets_it(store: Store, clock: HandClock) -> None:
    outlet = Outlet(store, clock, step=KEEP_SECONDS / 2)
    with relaying(store, outlet, clock):
        outlet.idle(7)
        assert outlet.puts == [Put([], 0, []), Put([], 0, [])]


def test_rows_from_memory_are_exactly_the_next_ones_and_within_the_bounds() -> None:
    """Otherwise the position would pass over another gateway's rows, which are in the table only."""
    fresh = FreshRows()
    fresh.add([{"number": number, "size": 10} for number in (3, 4, 5, 7, 8)])
    taken = [
        [row.number for row in fresh.take(position, most, room)]
        for position, most, room in ((2, 9, 99), (3, 1, 99), (4, 9, 5), (5, 9, 99), (6, 9, 99), (8, 9, 99), (9, 9, 99))
    ]
    assert taken == [[], [3], [4], [5], [], [8], []]
    fresh.add([{"number": number, "size": 1} for number in range(9, MOST_ROWS + 10)])
    assert fresh.take(9, 9, 99) == []


def test_a_relay_keeps_its_lease_while_it_works(store: Store, clock: HandClock) -> None:
    outlet, other = Outlet(store, clock, step=BEAT_SECONDS), Lease(store, clock)
    assert other.held()
    with relaying(store, outlet, clock):
        for _ in range(round(3 * STALE_SECONDS / BEAT_SECONDS)):
            outlet.idle()
            assert not other.held()
    assert other.held()


def test_a_relay_whose_lease_is_taken_puts_no_more_rows_on_kafka(
    store: Store, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    outlet, other = Outlet(store, clock, step=BEAT_SECONDS), Lease(store, clock)
    with relaying(store, outlet, clock):
        outlet.idle()
        assert other.held()
        outlet.free()
        eventually(lambda: "relay-standby" in caplog.text, "the relay goes on")
        accept(store, b"for the other")
        assert (numbers(store), outlet.puts) == ([1], [])
    assert other.held()


def test_a_transaction_that_fails_is_tried_again_with_fewer_rows_and_grows_with_each_success(
    store: Store, clock: HandClock
) -> None:
    """A transaction that is too large for the network to Kafka would otherwise fail each time."""

    class Refusing(Outlet):
        refusals = 2

        def put(self, rows: Sequence[Any], position: int) -> None:
            if self.refusals and rows:
                self.refusals -= 1
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            super().put(rows, position)

    accept(store, *[b"row"] * 7)
    outlet = Refusing(store, clock)
    with patch("gateway.accept.relay.MOST_ROWS", 8), relaying(store, outlet, clock):
        outlet.idle()
    assert [len(put.values) for put in outlet.puts] == [2, 4, 1, 0]


def test_rows_whose_deletion_failed_are_deleted_later(store: Store, clock: HandClock) -> None:
    failures = [StoreAway("the disk is full")]

    def forget_once(connection: Connection, position: int) -> None:
        if failures:
            raise failures.pop()
        forget(connection, position)

    accept(store, b"one", b"two")
    outlet = Outlet(store, clock)
    with patch("gateway.accept.relay.forget", forget_once), relaying(store, outlet, clock):
        outlet.idle(3)
        assert (failures, numbers(store)) == ([], [])
