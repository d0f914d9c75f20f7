"""A model's process: what it may do while it works, and what becomes of its callers when it fails."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import IO, cast

import pytest

from tests.product import eventually
from workers.processes import model_process
from workers.processes.frames import read_answer
from workers.processes.model_process import ModelAway, ModelNotLoaded, ModelProcess

MODULE = """
import errno, os, sys, threading
from pathlib import Path
from queue import SimpleQueue

from workers.processes.serving import serve_model

asked, answered = SimpleQueue(), SimpleQueue()
FLAGS = {
    "read": os.O_RDONLY, "write": os.O_WRONLY, "change": os.O_RDWR, "make": os.O_RDONLY | os.O_CREAT,
    "empty": os.O_RDONLY | os.O_TRUNC,
}

def work():
    while True:
        path, how = asked.get()
        try:
            os.close(os.open(path, FLAGS[how]))
        except OSError as error:
            answered.put(errno.errorcode[error.errno])
        else:
            answered.put("done")

def load():
    if Path(sys.argv[1], "broken").exists():
        raise ValueError("broken\\nby a test")
    threading.Thread(target=work, daemon=True).start()
    return answer

def answer(task, body):
    if "attempt" in task:
        asked.put(task["attempt"])
        return {"outcome": answered.get(timeout=10)}
    if "die" in task:
        os._exit(1)
    return {"echo": body.decode(), "capabilities": capabilities()}

def capabilities():
    import ctypes
    header, data = (ctypes.c_uint32 * 2)(0x20080522, threading.get_native_id()), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capget(header, data)
    return sum(data)

serve_model(lambda: [sys.argv[1]], load, "install it")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The model's folder, which the process may read."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("1")
    return folder


@pytest.fixture
def process(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelProcess]:
    (tmp_path / "served_model.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *sys.path)))
    process = ModelProcess("model", "served_model", str(folder), load_seconds=30)
    yield process
    process.close()


def outcome(process: ModelProcess, path: Path | str, how: str) -> str:
    """The outcome of an attempt of a thread that the model started while it was loaded."""
    return process.ask(str, "outcome", {"attempt": [str(path), how]}, b"", 30).result()


def echo(process: ModelProcess, *, waits: bool = False) -> str:
    return process.ask(str, "echo", {}, b"text", 30, waits=waits).result()


def test_a_thread_that_a_library_started_reads_the_model_and_nothing_of_the_worker(
    process: ModelProcess, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "keyring.json").write_text("secret")
    process.load().result()
    assert outcome(process, folder / "weights", "read") == "done"
    for secret in (tmp_path / "keyring.json", f"/proc/{os.getpid()}/environ", "/etc/passwd"):
        assert outcome(process, secret, "read") == "EACCES"
    for how in ("write", "change", "make", "empty"):
        assert outcome(process, folder / "weights", how) == "EPERM"
    assert (folder / "weights").read_text() == "1"
    assert process.ask(int, "capabilities", {}, b"", 30).result() == 0


def test_a_lost_process_is_started_again_once_and_by_one_chain_of_tries(
    process: ModelProcess, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_process, "FIRST_PAUSE_SECONDS", 0.05)
    tries: list[float] = []
    load = process._load

    def counted() -> None:
        tries.append(time.monotonic())
        load()

    process.load().result()
    monkeypatch.setattr(process, "_load", counted)
    (folder / "broken").touch()
    dying = process.ask(str, "echo", {"die": True}, b"", 30)
    waiting = [process.ask(str, "echo", {}, b"", 30, waits=True) for _ in range(3)]
    for asked in (dying, *waiting):
        with pytest.raises(ModelAway):
            asked.result()
    eventually(lambda: len(tries) >= 4, 30, "the model is not loaded again")
    pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert all(pause >= 0.05 * 2**number for number, pause in enumerate(pauses[:3]))
    (folder / "broken").unlink()
    eventually(lambda: process.pid is not None, 30, "the model is not loaded again")
    assert echo(process) == "text"


def test_a_model_that_was_away_for_days_is_loaded_again(process: ModelProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause that doubles exceeds the largest float after 1,024 failures, which take 17 hours."""
    process.load().result()
    tries: list[None] = []
    load = process._load

    def failing() -> None:
        tries.append(None)
        if len(tries) <= 1100:
            raise ModelNotLoaded("no memory")
        load()

    monkeypatch.setattr(process, "_load", failing)
    monkeypatch.setattr(model_process, "LONGEST_PAUSE_SECONDS", 0.0)
    with pytest.raises(ModelAway):
        process.ask(str, "echo", {"die": True}, b"", 30).result()
    eventually(lambda: process.pid is not None, 30, lambda: f"no further try after {len(tries)}")
    assert echo(process) == "text"


def test_a_model_that_cannot_be_loaded_is_refused_by_its_reason(process: ModelProcess, folder: Path) -> None:
    (folder / "broken").touch()
    with pytest.raises(ModelNotLoaded, match=r"^ValueError: broken$"):
        process.load().result()


@pytest.mark.parametrize("answer", ["[" * 100_000, "[]", "not JSON"])
def test_an_answer_that_is_none_costs_its_caller_an_error_and_the_process_is_replaced(
    process: ModelProcess, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    process.load().result()
    first = process.pid
    monkeypatch.setattr(model_process, "ask", lambda *_: read_answer(cast("IO[bytes]", _Frame(answer.encode()))))
    with pytest.raises(ModelAway, match="failed"):
        echo(process)
    monkeypatch.undo()
    eventually(lambda: process.pid not in (None, first), 30, "the model is not loaded again")
    assert echo(process) == "text"


def test_a_machine_without_threads_costs_a_caller_an_error_and_the_model_comes_back(
    process: ModelProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_process, "FIRST_PAUSE_SECONDS", 0.05)
    process.load().result()

    class Unstartable(Timer):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(model_process, "Timer", Unstartable)
        with pytest.raises(ModelAway):
            echo(process)
        eventually(lambda: process._failed_loads > 1, 30, "the model is not loaded again")
    eventually(lambda: process.pid is not None, 30, "the model is not loaded again")
    assert echo(process) == "text"


def test_a_caller_beside_the_end_is_told_that_the_process_is_stopping(process: ModelProcess) -> None:
    process.load().result()
    process.close()
    for waits in (False, True):
        with pytest.raises(ModelAway, match="stopping"):
            echo(process, waits=waits)


def test_a_hung_process_is_killed_after_its_seconds(process: ModelProcess) -> None:
    process.load().result()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(ModelAway, match="failed"):
        process.ask(str, "echo", {}, b"", 0.2).result()
    eventually(lambda: process.pid is not None, 30, "the model is not loaded again")


class _Frame:
    """A stream with one answer."""

    def __init__(self, answer: bytes) -> None:
        self._left = len(answer).to_bytes(4) + answer

    def read(self, size: int) -> bytes:
        read, self._left = self._left[:size], self._left[size:]
        return read
