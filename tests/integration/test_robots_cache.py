"""The cache of robots.txt files, with real servers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.integration.raw_server import CLOCK, LOOPBACK, saying, speaking
from workers.egress import Guard
from workers.enrichment.evidence import Unreadable
from workers.enrichment.fetching import robots
from workers.enrichment.fetching.fetch import Fetcher, Politeness
from workers.enrichment.fetching.robots import MAX_ROBOTS_BYTES, Robots
from workers.enrichment.processes.pool import Pool
from workers.enrichment.settings import EnrichmentSettings
from workers.enrichment.turns import Asker


@pytest.mark.parametrize(("file_bytes", "fetches"), [(10, 3), (MAX_ROBOTS_BYTES, 4)])
async def test_files_beyond_the_bytes_of_the_cache_leave_it(
    monkeypatch: pytest.MonkeyPatch, file_bytes: int, fetches: int
) -> None:
    """Blank files allow every page, and no process has to read them."""
    monkeypatch.setattr(robots, "KEPT_BYTES", 5 * MAX_ROBOTS_BYTES // 2)
    settings = EnrichmentSettings(budget_seconds=120)
    politeness = Politeness(settings, CLOCK)
    fetcher = Fetcher(settings, Guard(LOOPBACK), politeness, CLOCK)
    rules = Robots(settings, fetcher, Pool(settings, Metrics()), politeness, CLOCK)
    asked: list[str] = []
    async with AsyncExitStack() as servers:
        await fetcher.start()
        servers.push_async_callback(fetcher.close)
        blank = saying(b" " * file_bytes, "Content-Type: text/plain")
        origins = [await servers.enter_async_context(speaking(blank, targets=asked)) for _ in range(3)]
        for origin in (*origins, origins[-1], origins[0]):
            await rules.check(f"{origin}/page", Asker("default"))
    assert asked == ["/robots.txt"] * fetches


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        ("429 Too Many Requests", ["Retry-After: 600"], 600),
        ("503 Service Unavailable", ["Retry-After: 5"], 5),
        ("429 Too Many Requests", [], 60),
        ("429 Too Many Requests", ["Retry-After: 0"], 1),
        ("503 Service Unavailable", ["Retry-After: 86400"], 3600),
    ],
)
async def test_a_busy_server_forbids_every_page_until_the_time_that_it_names(
    status: str, headers: list[str], seconds: float
) -> None:
    """In an earlier version, a 429 counted as a missing file (4xx), which allows every page."""
    clock = HandClock()
    settings = EnrichmentSettings(budget_seconds=120)
    politeness = Politeness(settings, clock)
    fetcher = Fetcher(settings, Guard(LOOPBACK), politeness, clock)
    rules = Robots(settings, fetcher, Pool(settings, Metrics()), politeness, clock)
    asked: list[str] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (saying(b"", *headers, status=status) if len(asked) == 1 else saying(b" "))(reader, writer)

    async with speaking(script, targets=asked) as origin:
        await fetcher.start()
        try:
            for later in (0, seconds - 0.5):
                clock.sleep(later)
                with pytest.raises(Unreadable, match="its server answered") as refused:
                    await rules.check(f"{origin}/page", Asker("default"))
                assert (refused.value.is_outage, len(asked)) == (True, 1)
            clock.sleep(1)
            await rules.check(f"{origin}/page", Asker("default"))
        finally:
            await fetcher.close()
    assert asked == ["/robots.txt"] * 2
