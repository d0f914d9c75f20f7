"""vLLM's own processes: each line that they write is a line of the worker's log, and so ECS on a pipe."""

from __future__ import annotations

import importlib
import io
import json
import logging
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from telemetry import logs
from tests.drawn import drawn
from tests.ecs import log_lines
from tests.process_state import state_kept
from workers.engines.vllm.guardian import SOCKETS_VARIABLE
from workers.engines.vllm.process_log import ProcessLog
from workers.engines.vllm.process_log import log_lines as log_stream


class MainModule:
    """Imports the worker's main module while a process unpickles its arguments, before it imports vLLM."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return importlib.import_module, ("console.main",)


def speak(_imported: object) -> None:
    """Write a line in each of the ways in which vLLM's processes write lines."""
    logging.getLogger("vllm.v1.engine").warning("The cache\nis %d MiB.", 3)
    logging.getLogger("vllm.v1.engine").info("Left out.")
    warnings.warn("A library warns.", stacklevel=1)
    sys.stderr.write("Traceback\n\n  a plain line\n")
    sys.stderr.flush()
    os.write(1, b"[Gloo] Rank 0 is connected\n")
    try:
        raise RuntimeError("secret at https://user:pw@example.com/hook")
    except RuntimeError:
        logging.getLogger("vllm.v1.engine").exception("The engine failed.")
    os.write(2, b"terminate called")
    os.abort()


@pytest.fixture(autouse=True)
def _logging_kept() -> Iterator[None]:
    with state_kept():
        yield


@contextmanager
def logged(into: list[dict[str, Any]]) -> Iterator[None]:
    stream = io.StringIO()
    logs.configure("worker", stream=stream, level="INFO")
    yield
    into.extend(log_lines(stream.getvalue()))


def test_each_line_of_a_process_that_crashes_is_an_ecs_line_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SOCKETS_VARIABLE, str(tmp_path))
    lines: list[dict[str, Any]] = []
    with logged(lines):
        process_log = ProcessLog()
        process_log.start(str(tmp_path))
        process = multiprocessing.get_context("spawn").Process(target=speak, args=(MainModule(),))
        process.start()
        process.join()
        process_log.close()

    assert process.exitcode is not None
    assert process.exitcode < 0
    lines[1]["message"] = lines[1]["message"].splitlines()[0].rpartition(": ")[2]  # remove the file and the line number
    assert [(line["log.logger"], line["message"]) for line in lines] == [
        ("vllm.v1.engine", "The cache\nis 3 MiB."),
        ("py.warnings", "A library warns."),
        ("vllm_process", "Traceback"),
        ("vllm_process", "a plain line"),
        ("vllm_process", "[Gloo] Rank 0 is connected"),
        ("vllm.v1.engine", "The engine failed."),
        ("vllm_process", "terminate called"),
    ]
    failed = lines[5]
    assert (failed["log.level"], failed["process.pid"]) == ("error", process.pid)
    assert (failed["error.type"], failed["error.message"]) == ("RuntimeError", "secret at https://example.com/…")
    assert "RuntimeError" in failed["error.stack_trace"]


def test_a_log_that_was_never_started_can_be_closed() -> None:
    ProcessLog().close()


OWN = {"ecs.version": "9", "log.level": "error", "log.logger": "vllm.x", "message": "m", "process.pid": 7}
NOISE = st.dictionaries(
    st.sampled_from(sorted(OWN)), st.none() | st.booleans() | st.integers() | st.text(), max_size=6
).map(lambda changed: json.dumps(OWN | changed).encode())


@example([b"[" * 100_000])
@example([json.dumps(OWN | {"log.level": "no level"}).encode()])
@example([json.dumps(OWN | {"log.level": "notset"}).encode(), b"the line after it"])
@given(st.lists(st.binary() | NOISE, max_size=5))
@settings(max_examples=drawn(40))
def test_any_output_becomes_ecs_lines(written: list[bytes]) -> None:
    lines: list[dict[str, Any]] = []
    output = b"\n".join(written)
    with logged(lines):
        log_stream(io.BytesIO(output))
    spoken = [line for line in output.split(b"\n") if line.decode(errors="replace").strip()]
    assert len(lines) >= len(spoken)
    assert all(line["service.name"] == "worker" for line in lines)
