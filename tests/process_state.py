"""State that all tests of one process share: a test that leaves it changed breaks a later one, in some orders only."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

from cli.shared.errors import say_in_log

_UNWATCHED = {
    signal.SIGALRM,  # pytest-timeout sets this signal's handler
    signal.SIGINT,  # if SIGINT was ignored, asyncio does not ignore it again afterwards
    signal.SIGKILL,
    signal.SIGSTOP,
}
_WATCHED = sorted(set(signal.Signals) - _UNWATCHED)
_QUIETED = ("aiohttp.access", "asyncio", "confluent_kafka", "kafka", "urllib3")
_LOGGERS = [logging.getLogger(name) for name in (None, "postback", *_QUIETED)]
"""The root logger, ours, and the loggers that our processes silence. Loggers that an import silences are left out."""


@contextmanager
def state_kept() -> Iterator[None]:
    """Restore the loggers, the handlers of errors and the handlers of signals, which a starting role changes.

    A handler of log lines that outlived its test would write to a stream that is closed, and a later command would
    log its messages instead of printing them.
    """
    root = logging.getLogger()
    handlers = root.handlers[:]
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    on_signals = {number: signal.getsignal(number) for number in _WATCHED}
    try:
        with role_settings_kept():
            yield
    finally:
        say_in_log(None)
        root.handlers[:] = handlers
        logging.captureWarnings(False)
        sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
        for number, handler in on_signals.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextmanager
def role_settings_kept() -> Iterator[None]:
    """Restore the levels of the loggers, and the settings of the process that a role changes for its records."""
    levels = [logger.level for logger in _LOGGERS]
    files, interval, collecting = (
        resource.getrlimit(resource.RLIMIT_NOFILE),
        sys.getswitchinterval(),
        gc.get_threshold(),
    )
    try:
        yield
    finally:
        for logger, level in zip(_LOGGERS, levels, strict=True):
            logger.setLevel(level)
        gc.set_threshold(*collecting)
        sys.setswitchinterval(interval)
        resource.setrlimit(resource.RLIMIT_NOFILE, files)


def shared_state() -> dict[str, object]:
    """Return the state by name. Each logger, variable and signal has a name of its own."""
    mask = os.umask(0)
    os.umask(mask)
    return {
        **{f"variable {name}": value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        **{f"logger {one.name}": (one.level, one.propagate, one.disabled, _handlers(one)) for one in _LOGGERS},
        **{f"handler of {number.name}": signal.getsignal(number) for number in _WATCHED},
        "handlers of errors": (sys.excepthook, threading.excepthook, sys.unraisablehook),
        "garbage collection": (gc.isenabled(), gc.get_debug(), gc.get_threshold()),
        "tracemalloc": tracemalloc.is_tracing(),
        "open files limit": resource.getrlimit(resource.RLIMIT_NOFILE),
        "memory limit": resource.getrlimit(resource.RLIMIT_AS),
        "folder": os.getcwd(),  # noqa: PTH109 - a string costs a fifth of a Path
        "umask": mask,
        "sys.path": tuple(sys.path),
        "timeout of sockets": socket.getdefaulttimeout(),
    }


def _handlers(logger: logging.Logger) -> list[logging.Handler]:
    """Return the logger's handlers that write: a library adds a `NullHandler` when it is imported."""
    return [handler for handler in logger.handlers if not isinstance(handler, logging.NullHandler)]


def changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Return a line for each difference."""
    return [
        f"{name}: {before.get(name)!r} before, {after.get(name)!r} after"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
