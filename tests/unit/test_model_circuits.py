"""Circuits and rate limits of the registry's models, by a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.hand_clock import HandClock
from workers.engines.models.circuit import AddressCircuit
from workers.engines.models.entries import Circuit, RateLimits
from workers.engines.models.pacing import RateGate


def circuit(clock: HandClock) -> AddressCircuit:
    return AddressCircuit(Circuit(failures=3, seconds=10), clock)


def state(address: AddressCircuit) -> tuple[bool, bool]:
    """Return whether the circuit is open, and whether it admits a request."""
    return address.is_open, address.admits


def fail(address: AddressCircuit) -> None:
    number = address.begin()
    address.failed(number)
    address.ended(number)


def test_a_circuit_opens_after_failures_in_a_row_and_lets_one_request_try_later() -> None:
    clock = HandClock()
    address = circuit(clock)
    for _ in range(3):
        assert address.admits
        fail(address)
    assert state(address) == (True, False)
    clock.now += 10
    assert state(address) == (True, True)
    trying = address.begin()
    assert state(address) == (True, False)
    address.failed(trying)
    address.ended(trying)
    assert state(address) == (True, False)
    clock.now += 10
    trying = address.begin()
    address.answered(trying)
    address.ended(trying)
    assert state(address) == (False, True)


def test_an_answer_between_failures_keeps_the_circuit_closed() -> None:
    address = circuit(HandClock())
    for _ in range(5):
        fail(address)
        fail(address)
        address.answered(address.begin())
    assert not address.is_open


def test_a_cancelled_try_leaves_its_place_to_the_next_request() -> None:
    clock = HandClock()
    address = circuit(clock)
    for _ in range(3):
        fail(address)
    clock.now += 10
    address.ended(address.begin())
    assert address.admits


def test_a_failure_is_the_requests_fault_only_where_the_address_answers_others() -> None:
    address = circuit(HandClock())
    first, second = address.begin(), address.begin()
    assert not address.failed(first)
    address.answered(second)
    assert address.failed(address.begin())
    assert not address.failed(address.begin())


def test_a_timeout_is_the_requests_fault_only_where_a_later_request_was_answered() -> None:
    address = circuit(HandClock())
    early, slow, late = address.begin(), address.begin(), address.begin()
    address.answered(early)
    assert not address.failed(slow, took_too_long=True)
    address.answered(late)
    assert address.failed(slow, took_too_long=True)


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 500)), min_size=1, max_size=60))
def test_requests_never_exceed_their_limits_beyond_one_burst(asked: list[tuple[float, int]]) -> None:
    clock = HandClock()
    gate = RateGate(RateLimits(requests_per_second=4, tokens_per_minute=6000), clock)
    sent: list[tuple[float, int]] = []
    for pause, tokens in asked:
        clock.now += pause
        sent.append((clock.now + gate.reserve(tokens), tokens))
    for start, _ in sent:
        within = [(at, tokens) for at, tokens in sent if start <= at < start + 60]
        last = max(tokens for _, tokens in within)
        assert len(within) <= 4 * 60 + 4 + 1
        assert sum(tokens for _, tokens in within) <= 6000 + 600 + last + 1e-6


def test_the_real_cost_of_a_request_counts_once_it_is_known() -> None:
    clock = HandClock()
    gate = RateGate(RateLimits(tokens_per_minute=600), clock)
    assert gate.reserve(1000) == 0
    assert gate.reserve(1) == pytest.approx(94)
    gate.settle(1001, 11)
    assert gate.reserve(1) == 0
