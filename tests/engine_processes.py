"""The processes that vLLM starts for an engine: a test finds, freezes and kills them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil


def engine_of(pid: int) -> list[psutil.Process]:
    """The processes that vLLM started below this process: their titles begin with the guardian's mark."""
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if "postback-" in _title(child)]


@contextmanager
def frozen(processes: list[psutil.Process]) -> Iterator[None]:
    """Suspend these processes for a block; those that a test kills meanwhile are not resumed.

    A frozen engine ends no job, so a test sees jobs in flight on any machine.
    """
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def gone(processes: list[psutil.Process]) -> bool:
    """True if each of these processes has ended."""
    return not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def _title(process: psutil.Process) -> str:
    try:
        return process.cmdline()[0]
    except (psutil.Error, IndexError):  # the process ended after the listing, or is ending
        return ""
