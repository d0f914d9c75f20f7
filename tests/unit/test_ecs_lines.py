"""Every line that a process writes on a pipe is one ECS object, whatever is logged and however the process fails."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from telemetry.audit import Audit, AuditEvent
from telemetry.clock import SystemClock
from telemetry.logs import configure, get_logger
from tests.ecs import REQUIRED, log_lines, problems
from tests.process_state import state_kept

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.from_regex(r"x_[a-z_]{1,12}", fullmatch=True)
"""Names of the keyword arguments of a log call, in the form that our own calls use."""

FAILING = """
import logging, sys, threading, warnings
from telemetry import logs, uncaught

class Finalized:
    def __del__(self):
        raise ValueError("in a finalizer")

logs.configure("worker")
uncaught.log_uncaught()
warnings.warn("old since\\nlong")
logging.getLogger("library").error("%d of %d", "one")
for target in (lambda: 1 / 0, sys.exit):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
Finalized()
raise RuntimeError("first line\\nsecond line of https://user:pw@example.com/hook")
"""


@contextmanager
def logging_to(stream: io.TextIOWrapper) -> Iterator[None]:
    with state_kept():
        configure("worker", stream=stream, level="INFO")
        yield
        stream.flush()


@example("\ud800", {"x_a": float("nan"), "x_b": [float("inf")]}, "utf-8")
@given(st.text(), st.dictionaries(NAMES, VALUES, max_size=4), st.sampled_from(["utf-8", "ascii"]))
def test_any_log_line_is_one_ecs_line_in_any_encoding(message: str, fields: dict[str, object], encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with logging_to(stream):
        get_logger().info(message, action="job-done", **fields)
        logging.getLogger("library").warning("%s", message)
    stream.seek(0)
    ours, theirs = log_lines(stream.read())
    assert ours.keys() >= {f"postback.{name}" for name in fields}
    assert theirs["log.logger"] == "library"


def test_failures_that_no_code_handles_are_ecs_lines_too() -> None:
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, check=False)
    lines = log_lines(done.stderr)
    assert (done.returncode, done.stdout) == (1, "")
    assert [(line.get("event.action"), line.get("error.type")) for line in lines] == [
        (None, None),  # the line is a warning by Python
        ("log-line-failed", None),
        ("thread-crashed", "ZeroDivisionError"),
        ("error-ignored", "ValueError"),
        ("process-crashed", "RuntimeError"),
    ]
    assert "user:pw" not in done.stderr


@pytest.mark.parametrize("full", [True, False])
def test_an_audit_line_is_an_ecs_line(capfd: pytest.CaptureFixture[str], full: bool) -> None:
    event = AuditEvent("createJobs", "denied", False, None, None)
    if full:
        ids, hashes = ["job_1"], ["0" * 64]
        event = AuditEvent("createJobs", "creation", True, "key_1", "acme", ids, hashes, 202, "req_1", "2001:db8::1")
    Audit(None, SystemClock(), "gateway").record(event)
    [line] = capfd.readouterr().out.splitlines()
    assert problems(line, REQUIRED) == []


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ('"http.status": 1', "http.status is no ECS field"),
        ('"process.pid": "1"', "process.pid is no long: '1'"),
        ('"event.category": "api"', "event.category is no array"),
        ('"message": 1', "message is no match_only_text: 1"),
        ('"postback.x": NaN', "no JSON (NaN is no JSON number)"),
        ('"message": "", "message": ""', "no JSON (a name stands twice)"),
    ],
)
def test_the_check_notices_lines_that_are_not_ecs(field: str, said: str) -> None:
    assert [problem[: len(said)] for problem in problems(f"{{{field}}}", ())] == [said]
    assert problems("metrics and health on port 1")[0].startswith("no JSON")
