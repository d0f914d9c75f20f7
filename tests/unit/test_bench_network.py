"""The slow link of `bench.network`: delay, rate, queue and loss of one direction, on a pipe in place of a device."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from bench.network.link import Conditions, Direction

PACKET = b"x" * 1000
SLOW = Conditions(round_trip_seconds=0.1, bits_per_second=1_000_000)
"""A packet takes 8 ms on the link, and 50 ms more until it arrives."""


@pytest.fixture
def device() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, whose reads never wait."""
    reads, writes = os.pipe()
    os.set_blocking(reads, False)
    yield reads, writes
    os.close(reads)
    os.close(writes)


def arrived(reads: int) -> int:
    """The packets that have arrived since the last call."""
    try:
        return len(os.read(reads, 1 << 20)) // len(PACKET)
    except BlockingIOError:
        return 0


def test_packets_leave_one_after_another_and_arrive_half_a_round_trip_later(device: tuple[int, int]) -> None:
    reads, writes = device
    way = Direction(writes)
    for _ in range(2):
        way.take(PACKET, 10.0, SLOW, random.Random(1))
    assert way.due_seconds(10.0) == pytest.approx(0.058)
    for now, number in ((10.05, 0), (10.06, 1), (10.06, 0), (10.07, 1)):
        way.deliver(now)
        assert arrived(reads) == number


def test_a_full_queue_drops_packets_and_loss_drops_its_share(device: tuple[int, int]) -> None:
    reads, writes = device
    full, lossy, chance = Direction(writes), Direction(writes), random.Random(1)
    for _ in range(60):
        full.take(PACKET, 10.0, SLOW, chance)
    full.deliver(20.0)
    assert arrived(reads) == 31  # the queue holds 30 packets, and the first packet goes on the link at once
    wide = replace(SLOW, bits_per_second=1_000_000_000, loss=0.5)
    for number in range(60):
        lossy.take(PACKET, 10.0 + number, wide, chance)
    lossy.deliver(100.0)
    assert 15 < arrived(reads) < 45
