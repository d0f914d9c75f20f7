"""Ctrl-C while a command waits."""

from __future__ import annotations

import signal
from contextlib import suppress

import pytest

from console.interrupts import interruptible


def test_ctrl_c_that_a_library_swallowed_ends_the_loop_at_its_next_round() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible() as check:
        check()
        with suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        check()
        pytest.fail("the loop went on")


def test_ctrl_c_is_as_before_behind_the_block() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_counts_more_than_the_error_that_followed_it() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        with suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        raise OSError
