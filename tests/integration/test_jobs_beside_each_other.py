"""One job's slow pages and servers delay neither the pages nor the ranking of another job."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psutil
import pytest

from schemas.job import Sources
from scripts.play.site import Site
from telemetry.clock import Deadline
from tests.integration.raw_server import CLOCK, FACT, HTML, SLOW, enriching, page, saying, speaking
from workers.enrichment.enrich import Enricher

SLOW_PAGES = 20
SETTINGS: dict[str, Any] = {"robots": True, "budget_seconds": 30.0, "member_seconds": 4.0, "members": 2}
"""Longer than the defaults, for a busy machine. Two readers need 40 s for the slow pages: more than the budget."""


def is_reading() -> bool:
    """True if a reader is busy with a slow page."""
    with suppress(psutil.NoSuchProcess):  # a reader is killed when its page takes too long
        return any(child.cpu_percent(interval=0.1) > 10 for child in psutil.Process().children())
    return False


@asynccontextmanager
async def beside(enricher: Enricher, urls: list[str], tenant: str = "default") -> AsyncIterator[None]:
    """Run jobs with these sources in the background, one after the other."""

    async def one_after_the_other() -> None:
        for number in itertools.count():
            await enricher.enrich(Sources(urls=[f"{url}?{number}" for url in urls]), "Why?", tenant=tenant)

    jobs = asyncio.create_task(one_after_the_other())
    try:
        yield
    finally:
        jobs.cancel()
        await asyncio.gather(jobs, return_exceptions=True)


@pytest.mark.parametrize("tenant", ["default", "other"])
async def test_twenty_slow_pages_of_a_job_keep_no_other_job_from_its_page(tenant: str) -> None:
    async with Site() as site, speaking(saying(SLOW, HTML)) as origin, enriching(**SETTINGS) as enricher:
        async with beside(enricher, [f"{origin}/{number}" for number in range(SLOW_PAGES)], tenant):
            while not await asyncio.to_thread(is_reading):
                pass
            evidence = await enricher.enrich(Sources(urls=[site.url("/mine")]), "silver mine")
        assert [source.id for source in evidence.sources] == [site.url("/mine")]


async def test_slow_pages_keep_no_other_job_from_choosing_among_what_it_has() -> None:
    async with Site() as site, speaking(saying(SLOW, HTML)) as origin, enriching(**SETTINGS) as enricher:
        sources = Sources(urls=[site.url("/mine")])
        assert (await enricher.enrich(sources, "silver mine")).sources
        slow = [f"{origin}/{number}" for number in range(SLOW_PAGES)]
        async with beside(enricher, slow[:10]), beside(enricher, slow[10:], "other"):
            while not await asyncio.to_thread(is_reading):
                pass
            soon = Deadline.after(CLOCK, 20.0)  # this deadline passes before the first pages time out
            evidence = await enricher.enrich(sources, "silver mine", deadline=soon)
        assert [source.id for source in evidence.sources] == [site.url("/mine")]
        assert not any("no source" in note for note in evidence.notes)


@asynccontextmanager
async def hanging() -> AsyncIterator[int]:
    """A server on all of 127.0.0.0/8 that answers only `/fine`; yields its port."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.append(writer)
        if b"/fine" in await reader.readuntil(b"\r\n\r\n"):
            await saying(page(), HTML)(reader, writer)
            writer.close()

    running: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(hang, "0.0.0.0", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in running:
            writer.close()


@pytest.mark.parametrize("tenant", ["default", "other"])
async def test_servers_that_hang_do_not_hold_all_connections(tenant: str) -> None:
    async with hanging() as port, enriching(connections=8) as enricher:
        urls = [f"http://127.0.0.{number}:{port}/" for number in range(2, 2 + SLOW_PAGES)]
        async with beside(enricher, urls, tenant), asyncio.timeout(60):
            await asyncio.sleep(0.2)
            evidence = await enricher.enrich(Sources(urls=[f"http://127.0.0.1:{port}/fine"]), "bridge")
        assert [source.passages for source in evidence.sources] == [(FACT,)]


@pytest.mark.parametrize("tenant", ["default", "other"])
async def test_pages_that_hang_do_not_hold_all_connections_to_their_site(tenant: str) -> None:
    async with hanging() as port, enriching(connections_per_host=4) as enricher:
        urls = [f"http://127.0.0.1:{port}/{number}" for number in range(SLOW_PAGES)]
        async with beside(enricher, urls, tenant), asyncio.timeout(60):
            await asyncio.sleep(0.2)
            evidence = await enricher.enrich(Sources(urls=[f"http://127.0.0.1:{port}/fine"]), "bridge")
        assert [source.passages for source in evidence.sources] == [(FACT,)]
