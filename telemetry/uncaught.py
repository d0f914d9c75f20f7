"""Logs each error that no code handles as one line; Python's own hooks would print several plain lines."""

from __future__ import annotations

import sys
import threading
from types import TracebackType

from telemetry.logs import get_logger

log = get_logger()


def log_uncaught() -> None:
    """Log the error that ends the process or one of its threads, and errors that Python ignores."""
    sys.excepthook = _process_ends
    threading.excepthook = _thread_ends
    sys.unraisablehook = _ignored


def _process_ends(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    log.critical("No code handles this error; the process ends.", action="process-crashed", exc_info=error)


def _thread_ends(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_type is not SystemExit:
        log.critical("No code handles this error; its thread ends.", action="thread-crashed", exc_info=failed.exc_value)


def _ignored(ignored: sys.UnraisableHookArgs) -> None:
    log.error(
        "Python ignored an error in a callback or a finalizer.", action="error-ignored", exc_info=ignored.exc_value
    )
