"""The machine's own clock."""

from __future__ import annotations

import sys
import time

from telemetry.clock import SystemClock


def test_the_steady_clock_goes_on_while_a_linux_machine_is_suspended() -> None:
    # No test suspends the machine, and until it is suspended both of Linux's steady clocks show the same.
    steady = SystemClock.monotonic
    clock = getattr(steady, "func", steady), getattr(steady, "args", ())
    on_linux = sys.platform == "linux"
    assert clock == ((time.clock_gettime, (time.CLOCK_BOOTTIME,)) if on_linux else (time.monotonic, ()))
