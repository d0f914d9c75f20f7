"""The system clock, and the hand-set clock of tests."""

from __future__ import annotations

import sys
import time

import pytest

from telemetry.clock import Deadline, SystemClock
from telemetry.hand_clock import HandClock, SetClock


def test_the_steady_clock_goes_on_while_a_linux_machine_is_suspended() -> None:
    # Linux's steady clocks differ only after a suspension, which no test can cause, so compare the clock's name.
    steady = SystemClock.monotonic
    clock = getattr(steady, "func", steady), getattr(steady, "args", ())
    on_linux = sys.platform == "linux"
    assert clock == ((time.clock_gettime, (time.CLOCK_BOOTTIME,)) if on_linux else (time.monotonic, ()))


def test_a_sleep_moves_a_hand_clock_and_its_deadlines_pass_without_a_wait() -> None:
    clock = HandClock(100.0)
    deadline = Deadline.after(clock, 3600.0)

    clock.sleep(3599.0)
    assert (clock.time(), clock.monotonic(), deadline.remaining) == (3699.0, 3699.0, 1.0)
    clock.sleep(1.0)
    assert deadline.passed


def test_a_sleep_fails_the_test_of_code_that_must_not_wait() -> None:
    with pytest.raises(AssertionError, match=r"2\.5 s"):
        SetClock().sleep(2.5)
