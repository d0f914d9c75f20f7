"""Work that goes on in a thread while a test does something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread


@contextmanager
def repeating(seconds: float, act: Callable[[], object]) -> Iterator[None]:
    """Call `act` in a thread, with a pause of `seconds` before each call, until the block ends."""
    is_over = Event()

    def run() -> None:
        while not is_over.wait(seconds):
            act()

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
