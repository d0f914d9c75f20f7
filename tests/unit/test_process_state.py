"""The check that fails any test that leaves the process changed for later tests."""

from __future__ import annotations

import gc
import io
import logging
import os
import signal
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from telemetry import logs, uncaught
from tests.process_state import changes, shared_state, state_kept


def configured() -> Callable[[], object]:
    kept = state_kept()
    kept.__enter__()
    logs.configure("worker", stream=io.StringIO())
    return lambda: kept.__exit__(None, None, None)


def stopped_by_a_signal() -> Callable[[], object]:
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    return lambda: signal.signal(signal.SIGTERM, before)


def in_another_folder() -> Callable[[], object]:
    before = Path.cwd()
    os.chdir("/")
    return lambda: os.chdir(before)


def with_a_variable() -> Callable[[], object]:
    os.environ["POSTBACK_OF_A_TEST"] = "1"
    return lambda: os.environ.pop("POSTBACK_OF_A_TEST")


def with_another_umask() -> Callable[[], object]:
    before = os.umask(0o070)
    return lambda: os.umask(before)


def traced() -> Callable[[], object]:
    tracemalloc.start()
    return tracemalloc.stop


def without_collection() -> Callable[[], object]:
    gc.disable()
    return gc.enable


def with_a_path() -> Callable[[], object]:
    sys.path.append("/nowhere")
    return lambda: sys.path.remove("/nowhere")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (configured, "logger root"),
        (stopped_by_a_signal, "handler of SIGTERM"),
        (in_another_folder, "folder"),
        (with_a_variable, "variable POSTBACK_OF_A_TEST"),
        (with_another_umask, "umask"),
        (traced, "tracemalloc"),
        (without_collection, "garbage collection"),
        (with_a_path, "sys.path"),
    ],
)
def test_a_change_is_named_until_it_is_taken_back(change: Callable[[], Callable[[], object]], name: str) -> None:
    before = shared_state()
    take_back = change()
    try:
        assert name in [line.partition(":")[0] for line in changes(before, shared_state())]
    finally:
        take_back()
    assert changes(before, shared_state()) == []


def test_loggers_and_handlers_are_as_before_after_a_role_ran_in_this_process() -> None:
    before = shared_state()
    with state_kept():
        logs.configure("worker", stream=io.StringIO(), level="DEBUG")
        uncaught.log_uncaught()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        logging.getLogger("kafka").setLevel(logging.CRITICAL)
    assert changes(before, shared_state()) == []
