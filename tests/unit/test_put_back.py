"""The rate and the portions in which records are put back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from operators.put_back import Returning, put_back
from telemetry.hand_clock import HandClock


@dataclass
class Sent:
    """A sender that records the time and size of each batch; a batch takes a tenth of a second."""

    clock: HandClock
    batches: list[tuple[float, int]] = field(default_factory=list)

    def send(self, batch: Sequence[Returning]) -> None:
        self.batches.append((self.clock.now, len(batch)))
        self.clock.now += 0.1


def records(number: int, size: int = 10) -> list[list[Returning]]:
    return [[Returning("tier", b"k", bytes(size), [])] for _ in range(number)]


@pytest.mark.parametrize(("rate", "number", "seconds"), [(10, 35, 3.0), (1000, 2500, 2.0), (2, 3, 1.0)])
def test_records_are_put_back_no_faster_than_the_rate(rate: float, number: int, seconds: float) -> None:
    clock, told = HandClock(50.0), list[int]()
    sent: Any = Sent(clock)

    assert put_back(sent, records(number), rate, told.append, clock) == number
    assert told[-1] == sum(count for _, count in sent.batches) == number
    for at, _ in sent.batches:
        assert sum(count for earlier, count in sent.batches if earlier <= at) <= rate * (at - 50.0) + rate
    assert sent.batches[-1][0] - 50.0 == pytest.approx(seconds)


def test_a_transaction_has_bounded_bytes_and_keeps_a_record_with_its_mark() -> None:
    sent: Any = Sent(HandClock(50.0))
    groups = [[large, mark] for [large] in records(20, 900_000) for mark in [Returning("marks", b"k", b"m", [])]]

    assert put_back(sent, groups, 1e6, lambda done: None, sent.clock) == 20
    assert [count for _, count in sent.batches] == [20, 20]
