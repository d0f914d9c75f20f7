"""The faults, each a context manager that breaks a fleet for its block, and mends it at the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import psutil

from bench.faults.outside import Mode
from bench.faults.rig import Rig

Fault = Callable[[Rig], AbstractContextManager[object]]


def killed(name: str) -> Fault:
    """Kill a process by SIGKILL; it stays away."""

    @contextmanager
    def fault(rig: Rig) -> Iterator[None]:
        rig.kill(name)
        yield
        rig.start(name)

    return fault


def frozen(name: str) -> Fault:
    """Freeze a process by SIGSTOP."""

    @contextmanager
    def fault(rig: Rig) -> Iterator[None]:
        rig.signal(name, signal.SIGSTOP)
        yield
        rig.signal(name, signal.SIGCONT)

    return fault


def ill(server: str, mode: Mode) -> Fault:
    """Make the model server (`model`) or the receiver (`endpoint`) ill."""

    @contextmanager
    def fault(rig: Rig) -> Iterator[None]:
        rig.outside.set(getattr(rig.outside, server), mode)
        yield
        rig.outside.set(getattr(rig.outside, server), "well")

    return fault


def brokers_killed(*indexes: int) -> Fault:
    """Kill brokers by SIGKILL, and start them again at the end."""

    @contextmanager
    def fault(rig: Rig) -> Iterator[None]:
        for index in indexes:
            rig.broker.kill(index)
        yield
        # All at once, because a single one of three does not serve.
        threads = [threading.Thread(target=rig.broker.restart, args=(index,)) for index in indexes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return fault


def clock_moved(seconds: int) -> Fault:
    """Move the clock of the cell's process while it runs."""

    @contextmanager
    def fault(rig: Rig) -> Iterator[None]:
        rig.set_clock(seconds)
        yield
        rig.set_clock(0)

    return fault


@contextmanager
def redis_away(rig: Rig) -> Iterator[None]:
    """Kill Redis, which loses its data."""
    rig.redis.kill()
    yield
    rig.redis.start()


@contextmanager
def files_frozen(rig: Rig) -> Iterator[None]:
    """Freeze the S3 server."""
    [server] = [one for one in psutil.Process().children(recursive=True) if "versitygw" in one.name()]
    server.suspend()
    yield
    server.resume()
