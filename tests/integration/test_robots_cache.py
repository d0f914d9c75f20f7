"""The cache of robots.txt files, with real servers."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from telemetry.metrics import Metrics
from tests.integration.raw_server import CLOCK, LOOPBACK, saying, speaking
from workers.egress import Guard
from workers.enrichment.fetching import robots
from workers.enrichment.fetching.fetch import Fetcher
from workers.enrichment.fetching.politeness import Politeness
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
