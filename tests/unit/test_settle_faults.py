"""The settler's next step after transactional calls that fail, hang or return late, against a scripted client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from tests.unit.settle_rig import Client, WatchedSettler, batch_of, landed, repaired
from workers.stage import transactional_producer
from workers.stage.partition import Partition
from workers.stage.progress import Progress
from workers.stage.settler_state import SettlerState


@pytest.fixture
def held() -> Partition:
    partition = Partition("requests", 0, 1, 0.0)
    partition.open(Progress(5), 0)
    partition.ledger.take(5)
    return partition


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """The event for which hanging calls wait; it is set at the test's end at the latest."""
    event = threading.Event()
    yield event
    event.set()


def settled(settler: WatchedSettler, partition: Partition) -> object:
    """Settle a batch, after a sweep of the topics; return None if it failed."""
    repaired(settler, partition)
    settler.settle(batch_of(partition, 5))
    if settler.state is not SettlerState.SETTLING:
        repaired(settler, partition)
        settler.settle(batch_of(partition, 5))
    return landed(settler)


@pytest.mark.parametrize(
    ("error", "next_state"),
    [
        (KafkaError(KafkaError._TIMED_OUT), SettlerState.REBUILDING),
        (KafkaError(KafkaError.ILLEGAL_GENERATION, "rebalanced", txn_requires_abort=True), SettlerState.ABORTING),
        (KafkaError(KafkaError._FENCED, "another one came", fatal=True), SettlerState.REBUILDING),
        (KafkaError(KafkaError._TRANSPORT, "try again", retriable=True), SettlerState.COMMITTING),
    ],
    ids=["timed out", "to be aborted", "fatal", "retriable"],
)
def test_a_commit_that_fails_is_no_commit(held: Partition, error: KafkaError, next_state: SettlerState) -> None:
    class Failing(Client):
        failed = False

        def commit_transaction(self, timeout: float) -> None:
            if not Failing.failed:
                Failing.failed = True
                raise KafkaException(error)
            super().commit_transaction(timeout)

    settler = WatchedSettler(Failing)
    assert settled(settler, held) is None
    assert settler.state is next_state
    assert (len(settler.clients) == 2) == (next_state is SettlerState.REBUILDING)
    batch = settler.repair([held])
    assert (batch is not None) == (next_state is SettlerState.COMMITTING), (
        "only a commit that was called again comes through"
    )
    assert settler.state is not SettlerState.SETTLING


def test_a_call_that_hangs_is_left_behind_with_its_producer(
    held: Partition, released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call may hang beyond librdkafka's own timeout. An earlier version heard no rebalance while a call hung."""

    class Hanging(Client):
        def abort_transaction(self, timeout: float) -> None:
            released.wait(5)

    settler = WatchedSettler(Hanging)
    settler.repair([held])
    before = settler.state
    monkeypatch.setattr(transactional_producer, "ABORT_SECONDS", -0.9)  # the producer adds a margin of one second
    settler.repair([held])
    assert (before, settler.state) == (SettlerState.SWEEPING, SettlerState.REBUILDING)
    assert len(settler.clients) == 2


def test_progress_is_sent_with_the_member_that_it_belongs_to(held: Partition) -> None:
    """The broker refuses an expelled member's progress, so a partition's old owner cannot settle beside the new one."""
    members = []

    class Noting(Client):
        def send_offsets_to_transaction(self, positions: list[Any], metadata: Any, timeout: float) -> None:
            members.append(metadata)
            super().send_offsets_to_transaction(positions, metadata, timeout)

    assert settled(WatchedSettler(Noting), held) is not None
    assert set(members) == {"member"}


def test_a_sweep_is_aborted_only_once_all_of_it_is_written(held: Partition) -> None:
    """An abort drops the sweep's unsent records, so their partitions would get no end marker."""
    unsent = []

    class Noting(Client):
        def abort_transaction(self, timeout: float) -> None:
            unsent.append(len(self))
            super().abort_transaction(timeout)

    assert settled(WatchedSettler(Noting), held) is not None
    assert unsent
    assert set(unsent) == {0}
