"""Reloads of an engine that died: their number and the pauses between them."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from workers.engines.base import EngineLost, EngineUnavailable
from workers.engines.vllm import loading
from workers.engines.vllm.loading import LOADS, load_again


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


async def test_an_engine_that_loads_at_once_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(0, monkeypatch)
    await load_again(machine.load, machine.closing)
    assert (machine.loads, machine.pauses) == (1, [])


async def test_the_pause_between_loads_that_fail_grows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(LOADS - 1, monkeypatch)
    await load_again(machine.load, machine.closing)
    assert machine.pauses == [5.0, 10.0, 20.0, 40.0]
    lines = [cast("dict[str, Any]", record.msg) for record in caplog.records]
    assert [(line["action"], line["failures"]) for line in lines] == [
        ("engine-load-failed", number) for number in (1, 2, 3, 4)
    ]


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
