"""Settings of the interpreter and of the process's limits for many records in flight."""

from __future__ import annotations

import gc
import resource
import sys
from contextlib import suppress

_MOST_OPEN_FILES = 1 << 20


def collect_garbage_seldom() -> None:
    """Let the collector look at new objects every 50,000 allocations rather than every 700.

    A job leaves dozens of objects, and reference counting frees them all: collecting took a tenth of the stage's CPU.
    """
    gc.set_threshold(50_000, 20, 20)


def change_threads_often() -> None:
    """Let a thread wait for the interpreter for half a millisecond, not five, while another one computes.

    A stage's Kafka thread asks for the interpreter several times between taking a record and handing it over. The
    short wait serves callers who need an answer within milliseconds; without them it costs several hundredths of the
    rate.
    """
    sys.setswitchinterval(0.0005)


def allow_open_files() -> None:
    """Raise the limit of open files as far as allowed, up to a million; low limits serve programs that use `select`.

    Each callback under way and each idle connection holds a file, and some thousands are under way.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # macOS reports a hard limit and accepts less
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
