"""Death of an engine's process, and of the worker that owns it."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.play.model import tiny_model
from workers.engines.vllm.guardian import Guardian, marked

PROGRAM = Path(__file__).with_name("engine_process.py")
LONG = 3500


def until(met: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    ends = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < ends, f"never: {what}"
        time.sleep(0.05)


class EngineProcess:
    """A process that runs `engine_process.py`."""

    def __init__(self, kind: str, model: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), kind, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.hears() == {"ready": True}

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def ask(self, request_id: str, prompt: str = "Who wrote the book?", max_tokens: int = 4) -> None:
        self.tell(json.dumps({"id": request_id, "prompt": prompt, "max_tokens": max_tokens}))

    def hears(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        heard: dict[str, Any] = json.loads(self.process.stdout.readline())
        return heard

    def engine_processes(self) -> list[psutil.Process]:
        descendants = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in descendants if process.cmdline()[:1] and "postback-" in process.cmdline()[0]]

    def guardian(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        [guardian] = [process for process in children if any("guardian.py" in word for word in process.cmdline())]
        return guardian

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def is_gone(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


# -- the development engine ----------------------------------------------------------------------------------------


@pytest.fixture
def echo() -> Iterator[EngineProcess]:
    process = EngineProcess("echo", "none")
    yield process
    process.end()


def test_the_echo_engine_ends_its_worker_where_a_prompt_says_so(echo: EngineProcess) -> None:
    echo.ask("poison", "please [[crash-worker]]")
    assert echo.process.wait(60) == -signal.SIGKILL


def test_the_echo_engine_fails_all_that_is_in_flight_where_a_prompt_says_so(echo: EngineProcess) -> None:
    echo.ask("neighbour", "[[sleep 60]]")
    echo.ask("poison", "please [[crash-engine]]")
    died = [echo.hears(), echo.hears()]
    assert sorted(heard["id"] for heard in died) == ["neighbour", "poison"]
    assert {heard["error"] for heard in died} == {"EngineDied"}
    echo.ask("later")
    assert echo.hears() == {"id": "later", "finish_reason": "stop"}
    echo.tell("restarts")
    assert echo.hears() == {"restarts": 1.0}


# -- the guardian --------------------------------------------------------------------------------------------------

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def guardian() -> Iterator[Guardian]:
    guardian = Guardian()
    guardian.start()
    yield guardian
    guardian.close()


def test_an_engine_process_is_known_by_its_mark_and_so_are_its_children(guardian: Guardian) -> None:
    program = f"import subprocess; subprocess.run({SLEEP!r})"
    with guardian.marked_environment():
        parent = subprocess.Popen([sys.executable, "-c", program])
    stranger = subprocess.Popen(SLEEP)
    until(lambda: len(marked(guardian.mark)) == 2, "parent and child are marked")
    guardian.end_engine()
    assert marked(guardian.mark) == []
    assert parent.wait(10) == -signal.SIGKILL
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_an_engine_process_that_lost_its_parent_is_still_found(guardian: Guardian) -> None:
    quiet = "stdout=subprocess.DEVNULL, start_new_session=True"
    program = f"import subprocess; print(subprocess.Popen({SLEEP!r}, {quiet}).pid)"
    with guardian.marked_environment():
        orphan = int(subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout)
    assert marked(guardian.mark) == [orphan]
    guardian.close()
    assert marked(guardian.mark) == []


def test_a_signal_to_the_worker_s_process_group_does_not_end_the_guardian(guardian: Guardian) -> None:
    assert guardian.pid is not None
    process = psutil.Process(guardian.pid)
    until(lambda: _ignores_termination(process), "the guardian is up")
    assert os.getpgid(process.pid) != os.getpgid(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.send_signal(number)
    with guardian.marked_environment():
        engine = subprocess.Popen(SLEEP)
    guardian.close()
    assert engine.wait(10) == -signal.SIGKILL


def test_the_guardian_is_small_and_keeps_no_file_of_the_worker_open(guardian: Guardian) -> None:
    assert guardian.pid is not None
    process = psutil.Process(guardian.pid)
    until(lambda: _ignores_termination(process), "the guardian is up")
    assert process.memory_info().rss < 20 * 1024 * 1024
    assert sorted(entry.name for entry in Path(f"/proc/{process.pid}/fd").iterdir()) == ["0", "1", "2"]
    assert process.cwd() == "/"


def test_the_mark_leaves_the_environment_as_it_was(guardian: Guardian, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_TEST_A", "kept")
    monkeypatch.delenv("POSTBACK_TEST_B", raising=False)
    before = dict(os.environ)
    with guardian.marked_environment(POSTBACK_TEST_A="1", POSTBACK_TEST_B="2"):
        assert (os.environ["POSTBACK_TEST_A"], os.environ["POSTBACK_TEST_B"]) == ("1", "2")
    assert dict(os.environ) == before


def test_the_engine_s_sockets_have_a_private_folder_that_goes_with_the_guardian(guardian: Guardian) -> None:
    folder = Path(guardian.folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    with guardian.marked_environment():
        assert os.environ["VLLM_RPC_BASE_PATH"] == guardian.folder
    (folder / "left over").touch()
    guardian.close()
    assert not folder.exists()


def test_the_folder_s_path_leaves_room_for_a_socket_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("long" * 25)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    guardian = Guardian()
    guardian.start()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as bound:
        bound.bind(f"{guardian.folder}/{uuid.uuid4()}")
    guardian.close()


def _ignores_termination(process: psutil.Process) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    [ignored] = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn:")]
    return bool(ignored >> (signal.SIGTERM - 1) & 1)


# -- the real engine -----------------------------------------------------------------------------------------------


@pytest.mark.vllm
@pytest.mark.timeout(1_800)
def test_an_engine_that_dies_is_loaded_again_and_none_outlives_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process serves the whole test, since loading takes a minute: its engine is killed, then the worker.

    The worker's TMPDIR is too long for a socket's path. Such a TMPDIR once kept vLLM from starting, and killed
    processes left sockets there.
    """
    long = tmp_path / ("long" * 25)
    long.mkdir()
    # Keep torch's usual cache of compiled code, without which torch compiles for minutes.
    compiled = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    monkeypatch.setenv("TMPDIR", str(long))
    worker = EngineProcess("vllm", str(tiny_model()))
    assert len(worker.engine_processes()) >= 2

    worker.ask("landed")
    assert worker.hears() == {"id": "landed", "finish_reason": "length"}
    first = worker.engine_processes()
    for process in first:
        process.suspend()  # a frozen engine ends no request, so the next three are in flight at the kill
    for number in range(3):
        worker.ask(f"flying-{number}", max_tokens=LONG)
    worker.tell("running 3")
    assert worker.hears() == {"running": 3}
    first[0].kill()
    died = [worker.hears() for _ in range(3)]
    assert died == [{"id": heard["id"], "error": "EngineDied"} for heard in died]

    for number in range(3):
        worker.ask(f"waiting-{number}")
    assert {worker.hears()["finish_reason"] for _ in range(3)} == {"length"}
    worker.tell("restarts")
    assert worker.hears() == {"restarts": 1.0}
    assert all(is_gone(process) for process in first)

    guardian, second = worker.guardian(), worker.engine_processes()
    [folder] = Path("/tmp").glob(f"postback-{worker.process.pid}-*")
    assert any(path.is_socket() for path in folder.iterdir())
    worker.ask("flying", max_tokens=LONG)
    worker.process.kill()
    worker.end()
    until(
        lambda: all(is_gone(process) for process in [*second, guardian]), "the engine's processes and the guardian end"
    )
    assert not folder.exists()
    assert [path for path in long.rglob("*") if path.is_socket()] == []
