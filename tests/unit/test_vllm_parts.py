"""vLLM's parts in the worker: health, reloads, places, logs of its processes, and changed weights."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from telemetry import logs
from telemetry.metrics import Metrics
from tests.any_json import any_json
from tests.drawn import drawn
from tests.ecs import log_lines
from tests.process_state import state_kept
from tests.safetensors_files import safetensors
from workers.engines.base import EngineLost, EngineRefused, EngineUnavailable
from workers.engines.places import STEPS, Places
from workers.engines.vllm import loading
from workers.engines.vllm.adapters import header_of
from workers.engines.vllm.engine import VllmEngine
from workers.engines.vllm.guardian import SOCKETS_VARIABLE
from workers.engines.vllm.loading import LOADS, load_again, silence
from workers.engines.vllm.process_log import ProcessLog
from workers.engines.vllm.process_log import log_lines as log_stream
from workers.engines.vllm.settings import VllmSettings
from workers.engines.vllm.weights import require_same_model

# -- engine health ---------------------------------------------------------------------------------------------------
BOUND = 0.2


class Called:
    """Takes the place of vLLM's `AsyncLLM`; `answer` decides how a health call ends."""

    def __init__(self, answer: Callable[[], Awaitable[bool]]) -> None:
        self._answer = answer
        self.was_cancelled = False

    async def is_sleeping(self) -> bool:
        try:
            return await self._answer()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


async def test_an_engine_without_an_answer_hangs_and_its_call_is_cancelled() -> None:
    engine = Called(asyncio.Event().wait)
    silent = await silence(engine, BOUND)
    assert silent is not None
    assert silent >= 0.9 * BOUND  # the loop's timers may fire a clock's step early
    await asyncio.sleep(0)
    assert engine.was_cancelled


async def test_an_engine_that_answers_or_is_dead_does_not_hang() -> None:
    async def dead() -> bool:
        raise RuntimeError

    async def awake() -> bool:
        return False

    assert await silence(Called(awake), BOUND) is None
    assert await silence(Called(dead), BOUND) is None


async def test_an_engine_does_not_hang_because_its_caller_was_paused_for_longer_than_the_bound() -> None:
    """After a pause of the machine or the worker, the timeout fires first, and the answer is read some steps later."""

    async def after_a_pause() -> bool:
        time.sleep(2 * BOUND)  # blocks the loop like a pause of the process
        for _ in range(20):
            await asyncio.sleep(0)
        return False

    assert await silence(Called(after_a_pause), BOUND) is None


async def test_the_watch_of_an_engine_outlives_an_error_of_one_look() -> None:
    """An earlier watch ended in silence at the first error, and no hang was seen from then on."""
    engine = VllmEngine(VllmSettings(model="m"), Metrics())
    looks, again = 0, asyncio.Event()

    async def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise RuntimeError("the guardian has no processes left to start")
        again.set()

    watching = asyncio.create_task(engine.watch(0.01, look))
    async with asyncio.timeout(30):
        await again.wait()
    watching.cancel()


# -- engine loading --------------------------------------------------------------------------------------------------
class Machine:
    """A machine on which an engine loads after `failures` failed loads; records the pause before each retry."""

    def __init__(self, failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.closing = asyncio.Event()
        self.loads = 0
        self.pauses: list[float] = []
        self._failures = failures
        monkeypatch.setattr(loading, "is_set_within", self._pause)

    async def load(self) -> None:
        self.loads += 1
        if self.loads <= self._failures:
            raise RuntimeError("CUDA error:\n  no device")

    async def _pause(self, closing: asyncio.Event, seconds: float) -> bool:
        self.pauses.append(seconds)
        return closing.is_set()


async def test_the_pause_between_loads_that_fail_grows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for failures in (0, LOADS - 1):
        machine = Machine(failures, monkeypatch)
        await load_again(machine.load, machine.closing)
        assert (machine.loads, machine.pauses) == (failures + 1, [5.0, 10.0, 20.0, 40.0][:failures])
    lines = [cast("dict[str, Any]", record.msg) for record in caplog.records]
    assert [(line["action"], line["failures"]) for line in lines] == [("engine-load-failed", n) for n in (1, 2, 3, 4)]


async def test_after_five_failures_in_a_row_the_engine_is_lost_and_the_error_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(LOADS, monkeypatch)
    with pytest.raises(EngineLost, match="died, and loading it failed 5 times in a row: CUDA error: no device"):
        await load_again(machine.load, machine.closing)
    assert machine.loads == LOADS == 5


async def test_an_engine_that_is_closed_in_a_pause_is_not_loaded_again() -> None:
    closing, loads = asyncio.Event(), 0

    async def load() -> None:
        nonlocal loads
        loads += 1
        asyncio.get_running_loop().call_soon(closing.set)
        raise RuntimeError

    with pytest.raises(EngineUnavailable, match="closed"):
        await load_again(load, closing)
    assert loads == 1


# -- engine places ---------------------------------------------------------------------------------------------------
def loaded(limit: int, ranks: int = 1) -> Places:
    places = Places(None)
    places.loaded(limit, range(ranks))
    return places


def stepped(places: Places, *steps: tuple[int, int, int], rank: int = 0) -> int:
    """Take steps with these counts (running, waiting, answers), then count an idle engine; return the places."""
    for running, waiting, answers in steps:
        places.counted(rank, running, waiting)
        places.answered(answers)
    places.counted(rank, 0, 0)
    return places.number


def test_before_the_load_the_places_follow_from_the_settings_and_then_from_max_num_seqs_of_each_rank() -> None:
    assert (Places(None).number, Places(16).number, loaded(256, ranks=8).number) == (1, 16, 2048)


LONG = (64, 8, 0)
"""A step that leaves requests waiting beside 64 running ones."""


@pytest.mark.parametrize(
    ("steps", "places"),
    [
        ([(0, 0, 1), (64, 0, 0), (200, 0, 9)], 256),  # nothing waits
        ([(64, 136, 0)], 64),  # while requests wait, the running ones are the places
        ([LONG, (0, 8, 64), *[LONG] * 3], 64),  # requests that a step ended had places too
        ([(0, 8, 64)], 64),
        ([LONG, *[(20, 8, 0)] * (STEPS - 1)], 64),  # longer requests, of which the cache holds fewer
        ([LONG, *[(20, 8, 0)] * STEPS], 20),
        ([LONG, (60, 0, 0), (0, 0, 0)], 64),  # an empty queue keeps the places
        ([LONG, (72, 0, 0)], 72),  # more running requests make more
        ([LONG, (72, 0, 0), (63, 9, 1)], 64),
    ],
)
def test_the_places_follow_from_the_counts_after_each_step(steps: list[tuple[int, int, int]], places: int) -> None:
    assert stepped(loaded(256), *steps) == places


def test_each_rank_has_places_of_its_own() -> None:
    places = loaded(256, ranks=2)
    assert stepped(places, (64, 8, 0), rank=1) == 256 + 64
    assert stepped(places, (30, 1, 0), rank=0) == 30 + 64
    places.loaded(256, range(2))
    assert places.number == 512


@settings(max_examples=drawn(100))
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))))
def test_whatever_is_counted_each_rank_has_one_to_max_num_seqs_places(steps: list[tuple[int, int, int, int]]) -> None:
    places = loaded(256, ranks=3)
    for rank, running, waiting, answers in steps:
        places.counted(rank, running, waiting)
        places.answered(answers)
        assert 3 <= places.number <= 3 * 256


# -- vllm process log ------------------------------------------------------------------------------------------------
class MainModule:
    """Imports the worker's main module while a process unpickles its arguments, before it imports vLLM."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return importlib.import_module, ("cli.main",)


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


# -- vllm weights ----------------------------------------------------------------------------------------------------
TENSORS = {"embed": ("F32", [4, 2]), "head": ("F32", [2, 4])}
CONFIG = {"model_type": "llama", "hidden_size": 2}


def model(folder: Path, **files: bytes) -> Path:
    folder.mkdir()
    written = {
        "config.json": json.dumps({**CONFIG, "_name_or_path": str(folder)}).encode(),
        "tokenizer.json": b'{"model": {}}',
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors": safetensors(TENSORS),
        "README.md": str(folder).encode(),
        **{name.replace("__", "."): content for name, content in files.items()},
    }
    for name, content in written.items():
        (folder / name).write_bytes(content)
    return folder


def test_folders_that_differ_only_in_the_values_of_their_tensors_hold_the_same_model(tmp_path: Path) -> None:
    one = model(tmp_path / "one")
    shards = {f"s{number}__safetensors": safetensors({name: TENSORS[name]}) for number, name in enumerate(TENSORS)}
    other = model(tmp_path / "two", **shards, model__safetensors__index__json=b'{"weight_map": {}}')
    (other / "model.safetensors").unlink()
    require_same_model(one, other)
    require_same_model(one, model(tmp_path / "three", model__safetensors=safetensors(TENSORS, b"\7")))


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"config__json": b'{"model_type": "llama", "hidden_size": 4}'}, r"config\.json of the new folder differs"),
        ({"config__json": b"{"}, r"config\.json cannot be read"),
        ({"tokenizer__json": b'{"model": {"vocab": {}}}'}, r"tokenizer\.json of the new folder differs"),
        ({"chat_template__jinja": b"{{ messages[0] }}"}, r"chat_template\.jinja of the new folder differs"),
        ({"generation_config__json": b"{}"}, r"generation_config\.json of the new folder differs"),
        ({"model__safetensors": safetensors({**TENSORS, "head": ("F32", [4, 2])})}, "the tensor head has another"),
        ({"model__safetensors": safetensors({**TENSORS, "head": ("BF16", [2, 4])})}, "the tensor head has another"),
        ({"model__safetensors": safetensors({"embed": ("F32", [4, 2])})}, "the tensor head .* missing there"),
        ({"model__safetensors": safetensors(TENSORS)[:-1]}, r"model\.safetensors is no .* not complete"),
        ({"model__safetensors": safetensors({"embed": ("F32", [float("inf")])})}, r"model\.safetensors is no safet"),
        ({"model__safetensors": b""}, r"model\.safetensors is no safetensors file"),
    ],
)
def test_each_other_difference_is_named(tmp_path: Path, files: dict[str, bytes], why: str) -> None:
    with pytest.raises(EngineRefused, match=why):
        require_same_model(model(tmp_path / "one"), model(tmp_path / "two", **files))


def test_a_model_that_is_no_folder_or_has_no_safetensors_needs_a_restart(tmp_path: Path) -> None:
    one, other = model(tmp_path / "one"), model(tmp_path / "two")
    with pytest.raises(EngineRefused, match="only from a folder to a folder"):
        require_same_model(one, tmp_path / "missing")
    with pytest.raises(EngineRefused, match=r"cannot be read \(File name too long\)"):
        require_same_model(one, tmp_path / ("x" * 300))
    (other / "model.safetensors").unlink()
    with pytest.raises(EngineRefused, match="no safetensors files"):
        require_same_model(one, other)


@pytest.mark.parametrize(("more", "is_read"), [(0, True), (1, False)])
def test_a_header_that_would_fill_the_memory_is_not_read(tmp_path: Path, more: int, *, is_read: bool) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(_file(b"{}" + b" " * (32 * 1024 * 1024 - 2 + more)))
    if is_read:
        assert header_of(path) == {}
        return
    with pytest.raises(
        EngineRefused, match=r"^model\.safetensors has a header of 33554433 bytes, and at most 33554432"
    ):
        header_of(path)


json_values = any_json(st.sampled_from(["a", "dtype", "shape"]))


@given(st.binary(max_size=200) | json_values.map(lambda value: _file(json.dumps(value).encode())))
def test_a_file_of_any_content_has_a_header_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    try:
        header_of(path)
    except EngineRefused as refused:
        assert str(refused) == "any.safetensors is no safetensors file, or is not complete"


def _file(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header
