"""The interpreter and the limits of a process, set for many records in flight."""

from __future__ import annotations

import gc
import resource
import sys
from contextlib import suppress

_MOST_OPEN_FILES = 1 << 20


def collect_garbage_seldom() -> None:
    """Let the collector look at new objects every 50,000 allocations rather than every 700.

    A job leaves dozens of them, and reference counting frees them all: looking took a tenth of the stage's CPU.
    """
    gc.set_threshold(50_000, 20, 20)


def change_threads_often() -> None:
    """Let a thread wait for the interpreter for half a millisecond, not five, while another one computes.

    A stage's Kafka thread asks for it several times between taking a record and handing it over: for records on which
    somebody waits for milliseconds. Where nobody does it costs several hundredths of the rate.
    """
    sys.setswitchinterval(0.0005)


def allow_open_files() -> None:
    """Raise the limit of open files as far as we may, up to a million; a low one is for programs that use `select`.

    Each callback under way and each idle connection has one, and some thousands are under way.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # macOS names a hard limit and takes less
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
