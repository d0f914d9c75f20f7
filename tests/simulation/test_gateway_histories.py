"""Accept and relay in drawn histories: each accepted request is on Kafka exactly once, and repeats change nothing.

POSTBACK_HISTORIES sets the number of histories; a failing one prints its seed and its text, and its seed repeats it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import Connection

from gateway.accept.jobs import NewJob
from gateway.accept.outbox import put_record
from gateway.accept.relay import BEAT_SECONDS, STALE_SECONDS
from gateway.store.store import StoreAway
from tests.accepted import accept_jobs
from tests.simulation.gateway_history import FULL_ROWS, KAFKA, PRINCIPAL, ROUND_SECONDS, Gateway, History, history

HISTORIES = int(os.environ.get("POSTBACK_HISTORIES", "60"))
TAKEN_OVER_SECONDS = STALE_SECONDS + BEAT_SECONDS + 2.0
"""The most seconds for which accepted records wait after the death of the relay with the lease."""


def for_each(seeds: Iterable[int], folder: Path, play: Callable[[History], None]) -> None:
    """Play a history for each seed; name the seed of the first that fails."""
    for seed in seeds:
        (folder / str(seed)).mkdir()
        try:
            with history(random.Random(seed), folder / str(seed)) as drawn:
                play(drawn)
        except Exception as error:
            error.add_note(f"the seed is {seed}")
            raise


def test_a_relay_keeps_its_lease_until_it_ends_and_the_other_then_takes_over(tmp_path: Path) -> None:
    def accept(drawn: History, seconds: float) -> None:
        drawn.ask()
        drawn.rounds(seconds)
        assert drawn.outbox() == 0, "accepted records wait"

    def play(drawn: History) -> None:
        drawn.storm(60)
        drawn.calm()
        for _ in range(5):  # a producer whose transaction timed out in the storm fails at its next record
            drawn.ask()
        drawn.drain()
        drawn.rounds(TAKEN_OVER_SECONDS)
        openings, holder = drawn.kafka.epoch, drawn.holder()
        for _ in range(3):
            accept(drawn, STALE_SECONDS)
        assert (drawn.kafka.epoch, drawn.holder()) == (openings, holder), "a relay took over from a healthy one"
        drawn.kill(holder)
        accept(drawn, TAKEN_OVER_SECONDS)
        (standby,) = drawn.gateways
        drawn.start()
        accept(drawn, 2.0)
        drawn.stop(standby)
        accept(drawn, TAKEN_OVER_SECONDS)
        assert drawn.kafka.epoch == openings + 2, "a relay's end made another one give way"
        (last,) = drawn.gateways
        drawn.start()
        accept(drawn, 2.0)
        drawn.stop(drawn.holder())
        accept(drawn, 2 * BEAT_SECONDS)
        assert drawn.holder() is last
        drawn.verify()

    for_each(range(max(1, HISTORIES // 10)), tmp_path, play)


def test_a_failing_relay_that_gives_way_says_that_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with history(random.Random(0), tmp_path) as drawn:
        drawn.rounds(3.0)
        noted = SimpleNamespace(info=lambda _, action, **__: said.append(action), warning=lambda *_, **__: None)
        monkeypatch.setattr("gateway.accept.relay.log", noted)
        drawn.kafka.away = True
        drawn.ask()
        drawn.rounds(20.0)
        first = drawn.holder()
        said.clear()  # of two that started together, one has given way
        first.frozen = True
        drawn.rounds(TAKEN_OVER_SECONDS)
        assert drawn.holder() is not first
        first.frozen = False
        drawn.rounds(10.0)
        assert said == ["relay-standby"]
        drawn.kafka.away = False
        drawn.drain()
        assert said == ["relay-standby", "relay-leading", "relay-repaired"]


def test_accepted_requests_are_on_kafka_exactly_once_and_repeats_get_the_first_answer(tmp_path: Path) -> None:
    def play(drawn: History) -> None:
        drawn.storm(120)
        drawn.calm()
        drawn.drain()
        drawn.repeat_all()
        drawn.verify()
        drawn.forget_position()
        drawn.ask()
        drawn.drain()
        drawn.verify()

    # In 90, a broker's crash undoes the last commit before a later one.
    for_each(sorted({*range(HISTORIES), 90}), tmp_path, play)


def test_no_record_enters_the_outbox_before_kafka_has_stated_the_position(tmp_path: Path) -> None:
    with history(random.Random(0), tmp_path) as drawn:
        drawn.kafka.away = True
        first, _ = drawn.gateways
        drawn.rounds(3.0)
        for change in (partial(accepted, drawn, "early"), partial(put_record, topic="t", key=b"k", value=b"v")):
            with pytest.raises(StoreAway, match="Kafka has not yet shown"):
                outcome(drawn, first, change)
        assert first.acceptance.reasons() == [
            "no work is accepted: Kafka has not yet shown which accepted records it has"
        ]
        drawn.kafka.away = False
        drawn.rounds(3.0)
        outcome(drawn, first, partial(accepted, drawn, "now"))
        assert first.acceptance.reasons() == []


def test_a_full_outbox_takes_no_jobs_until_kafka_has_taken_some(tmp_path: Path) -> None:
    with history(random.Random(0), tmp_path) as drawn:
        drawn.rounds(3.0)
        drawn.kafka.away = True
        first = drawn.holder()
        for number in range(FULL_ROWS):
            outcome(drawn, first, partial(accepted, drawn, f"job {number}"))
        drawn.rounds(2.0)
        with pytest.raises(StoreAway, match=f"{FULL_ROWS} accepted records wait for Kafka"):
            outcome(drawn, first, partial(accepted, drawn, "refused"))
        outcome(drawn, first, partial(put_record, topic="t", key=b"k", value=b"v"))
        drawn.rounds(10.0)
        assert first.relay.reasons() == ["accepted records wait, since they do not reach Kafka (_TIMED_OUT)"]
        drawn.kafka.away = False
        drawn.rounds(TAKEN_OVER_SECONDS)
        outcome(drawn, first, partial(accepted, drawn, "now"))
        drawn.drain()
        assert first.relay.reasons() == []
        keys = [piece.key for piece in drawn.kafka.records() if piece.place[0] != "t"]
        assert keys == [*(f"job {number}".encode() for number in range(FULL_ROWS)), b"now"]


def accepted(drawn: History, job_id: str, connection: Connection) -> None:
    """Accept one job, without a key."""
    accept_jobs(connection, PRINCIPAL, [NewJob(job_id, "/v1/jobs", b"{}")], KAFKA.topics, drawn.clock)


def outcome(drawn: History, gateway: Gateway, change: Callable[[Connection], None]) -> None:
    """Run a change through a gateway's writer. Raises the change's error."""
    future = gateway.store.submit(change)
    drawn.rounds(ROUND_SECONDS)
    future.result()


def test_a_seed_repeats_its_history(tmp_path: Path) -> None:
    told: list[tuple[list[str], list[object]]] = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        with history(random.Random(1), tmp_path / name) as drawn:
            drawn.storm(200)
            told.append((drawn.told, list(drawn.kafka.pieces)))
    assert told[0] == told[1]
