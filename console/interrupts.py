"""Ctrl-C that no library swallows, for commands that wait in a loop.

kafka-python runs its tasks on the caller's thread and stores every exception in the task that it interrupted. A
KeyboardInterrupt that meets a task of the background is lost there, and the command would wait on.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Remember Ctrl-C within a block. Yield a function that raises KeyboardInterrupt if it was pressed.

    A loop calls that function each round. The end of the block raises KeyboardInterrupt too, in place of any other
    error, if it was pressed. Use this on the main thread only.
    """
    pressed = False

    def note(number: int, frame: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
        check()
