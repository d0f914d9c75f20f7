"""Start and end of the processes that read pages, while jobs come and go faster than processes start."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from telemetry.metrics import Metrics
from workers.enrichment.evidence import Unreadable
from workers.enrichment.processes.pool import Pool
from workers.enrichment.settings import EnrichmentSettings
from workers.enrichment.turns import Asker

TASK = {"kind": "extract", "media_type": "text/plain", "charset": "utf-8", "url": "https://a.example/"}


Started = Callable[[], list[psutil.Process]]


@pytest.fixture
def started() -> Started:
    """A function that lists the children that the test has started, without earlier ones such as a broker."""
    before = psutil.Process().children()
    return lambda: [child for child in psutil.Process().children() if child not in before]


async def asked(pool: Pool) -> str:
    return str((await pool.ask(dict(TASK), b"A bridge.", Asker("default")))["text"])


def python_that(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the members' interpreter with this shell script."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


async def test_waiters_that_give_up_leave_no_more_than_one_starting_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: Started
) -> None:
    python_that("exec sleep 60", tmp_path, monkeypatch)
    pool = Pool(EnrichmentSettings(members=2), Metrics())
    for _ in range(6):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asked(pool), 0.1)
    assert len(started()) == 1
    await pool.close()
    assert started() == []


async def test_a_reader_that_starts_for_a_job_that_is_gone_serves_the_next(started: Started) -> None:
    pool = Pool(EnrichmentSettings(members=2, member_seconds=10), Metrics())
    first = asyncio.create_task(asked(pool))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert await asked(pool) == "A bridge."
    assert len(started()) == 1
    await pool.close()


async def test_a_pool_closes_while_a_reader_that_never_gets_ready_is_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: Started
) -> None:
    python_that("exec sleep 60", tmp_path, monkeypatch)
    pool = Pool(EnrichmentSettings(), Metrics())
    warming = asyncio.create_task(pool.warm())
    await asyncio.sleep(0.1)
    async with asyncio.timeout(20):
        await pool.close()
        await warming
    assert started() == []


async def test_a_reader_that_cannot_start_is_our_own_fault_and_the_next_job_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: Started
) -> None:
    pool = Pool(EnrichmentSettings(member_seconds=10), Metrics())
    with monkeypatch.context() as patched:
        python_that("exit 1", tmp_path, patched)
        with pytest.raises(Unreadable, match="could not be started") as failed:
            await asked(pool)
        assert failed.value.is_ours
    assert await asked(pool) == "A bridge."
    await pool.close()
