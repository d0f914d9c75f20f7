"""Settings of the interpreter and of the process's limits for many records in flight."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress

_MOST_OPEN_FILES = 1 << 20
_M_ARENA_MAX = -8
"""The option of glibc's `mallopt` (malloc.h)."""


def collect_garbage_seldom() -> None:
    """Make the garbage collector run every 50,000 allocations rather than every 700.

    Each job makes dozens of objects, and reference counting frees all of them: collecting took a tenth of the stage's
    CPU time.
    """
    gc.set_threshold(50_000, 20, 20)


def change_threads_often() -> None:
    """Let a thread wait for the interpreter lock for half a millisecond, not five, while another thread computes.

    A stage's Kafka thread waits for the lock several times between taking a record and handing the record over. The
    short wait serves callers that need an answer within milliseconds, but costs a few percent of throughput.
    """
    sys.setswitchinterval(0.0005)


def allow_open_files() -> None:
    """Raise the limit of open files as far as allowed, up to about a million.

    Each running callback and each idle connection uses a file, and thousands of callbacks run at once. The default
    limit is low for the sake of programs that use `select`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # macOS sometimes refuses the hard limit that it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def share_arenas() -> None:
    """Let all threads allocate from two arenas where the C library is glibc, and not from eight for each core.

    Kafka's clients have dozens of threads. Memory that one thread has freed serves another only within one arena: a
    gateway that answered a batch of 200 MB kept 74 MiB, and 48 to 71 with two arenas.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_ARENA_MAX, 2)
