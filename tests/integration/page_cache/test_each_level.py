"""The page cache on each level: concurrent jobs share one read, and stale copies stand in for a server that is down."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from schemas.job import Sources
from tests.integration.page_cache.workers import QUESTION, everything, serving, working, written
from tests.integration.raw_server import FACT, PATIENT, SLOW
from tests.redis_server import RedisServer


async def test_a_page_is_fetched_once_while_it_is_fresh(level: dict[str, Any]) -> None:
    async with serving() as origin, working(**level) as worker:
        for _ in range(3):
            evidence = await worker.read(origin.url)
            assert evidence.sources[0].passages == (FACT,)
            await written()
        assert len(origin.asked) == 1


async def test_many_jobs_read_a_page_once() -> None:
    async with serving() as origin, working() as worker:
        found = await asyncio.gather(*(worker.read(origin.url) for _ in range(20)))
        assert all(len(evidence.sources) == 1 for evidence in found)
        assert len(origin.asked) == 1


async def test_a_missing_page_is_remembered(level: dict[str, Any]) -> None:
    async with serving() as origin, working(**level) as worker:
        origin.status = 404
        for _ in range(3):
            evidence = await worker.read(origin.url)
            assert "its server answered 404" in evidence.notes[0]
            await written()
        assert len(origin.asked) == 1


async def test_a_page_that_may_not_be_stored_is_not_stored() -> None:
    async with serving() as origin, working() as worker:
        origin.headers = {"Cache-Control": "private, max-age=600"}
        for _ in range(2):
            await worker.read(origin.url)
            await written()
        assert len(origin.asked) == 2


async def test_an_older_copy_is_served_and_labelled_while_its_server_is_away(level: dict[str, Any]) -> None:
    async with serving() as origin, working(**level) as worker:
        origin.headers = {"Cache-Control": "max-age=0"}
        await worker.read(origin.url)
        await written()
        origin.status = 503
        for _ in range(2):
            evidence = await worker.read(origin.url)
            assert evidence.sources[0].passages == (FACT,)
            assert evidence.notes == (f"source 1 ({origin.url[:-5]}) is an older copy: its server answered 503",)
            await written()
        assert len(origin.asked) == 2  # the loop's second read reused the first read's 503


async def test_an_older_copy_is_served_where_its_server_cannot_say_whether_it_may_be_read(tmp_path: Path) -> None:
    obedient = PATIENT.model_copy(update={"robots": True})
    async with serving() as origin:
        origin.headers = {"Cache-Control": "max-age=0"}
        async with working(enrichment=obedient, disk_path=tmp_path / "pages.sqlite") as worker:
            assert len((await worker.read(origin.url)).sources) == 1
            await written()
        origin.status = 503
        async with working(enrichment=obedient, disk_path=tmp_path / "pages.sqlite") as restarted:
            evidence = await restarted.read(origin.url)
            other = await restarted.read(f"{origin.url}/other")
    assert evidence.sources[0].passages == (FACT,)
    assert "is an older copy: its site's robots.txt could not be read" in evidence.notes[0]
    assert other.sources == ()


async def test_an_older_copy_is_served_while_its_site_asks_to_be_left_alone() -> None:
    async with serving() as origin, working() as worker:
        origin.headers = {"Cache-Control": "max-age=0", "Retry-After": "600"}
        await worker.read(origin.url)
        origin.status = 429
        assert (await worker.read(f"{origin.url}/other")).sources == ()
        evidence = await worker.read(origin.url)
        assert evidence.sources[0].passages == (FACT,)
        assert "is an older copy: its site asked for a pause" in evidence.notes[0]
        assert len(origin.asked) == 2


async def test_a_worker_that_reads_too_slowly_replaces_no_good_copy_and_stores_no_failure_for_other_workers(
    redis: RedisServer, tmp_path: Path
) -> None:
    hasty, settings = PATIENT.model_copy(update={"member_seconds": 1.0}), everything(redis, tmp_path)
    async with serving() as origin:
        origin.headers = {"Cache-Control": "max-age=0"}
        async with working(**settings) as patient:
            await patient.read(origin.url)
            await written()
        origin.text = SLOW.decode()
        async with working(enrichment=hasty, **settings) as busy:
            for _ in range(2):
                older, none = await busy.read(origin.url), await busy.read(f"{origin.url}/other")
                await written()
        assert older.sources[0].passages == (FACT,)
        assert any("is an older copy: reading it took more than 1 s" in note for note in older.notes)
        assert "was left out: reading it took more than 1 s" in none.notes[0]
        assert len(origin.asked) == 3
        origin.text = "The Halvorsen bridge opened in 1988."
        async with working(**settings) as other:
            for path in ("", "/other"):
                evidence = await other.read(f"{origin.url}{path}")
                assert (evidence.sources[0].passages, evidence.notes) == ((origin.text,), ())


async def test_a_page_that_is_gone_is_not_served_from_an_older_copy() -> None:
    async with serving() as origin, working() as worker:
        origin.headers = {"Cache-Control": "max-age=0"}
        await worker.read(origin.url)
        await written()
        origin.status = 410
        assert (await worker.read(origin.url)).sources == ()


async def test_a_page_that_has_not_changed_is_not_read_again(level: dict[str, Any]) -> None:
    async with serving() as origin, working(**level) as worker:
        origin.headers = {"Cache-Control": "max-age=0", "ETag": '"v1"'}
        await worker.read(origin.url)
        await written()
        origin.text = "This would be something else."
        evidence = await worker.read(origin.url)
        assert evidence.sources[0].passages == (FACT,)
        assert evidence.notes == ()
        assert [request.headers.get("If-None-Match") for request in origin.asked] == [None, '"v1"']


async def test_a_page_with_no_cache_is_not_served_stale_and_its_copy_is_revalidated() -> None:
    async with serving() as origin, working() as worker:
        origin.headers = {"Cache-Control": "no-cache", "ETag": '"v1"'}
        for _ in range(2):
            assert (await worker.read(origin.url)).sources[0].passages == (FACT,)
        assert [request.headers.get("If-None-Match") for request in origin.asked] == [None, '"v1"']
        origin.status, origin.headers = 503, {}
        evidence = await worker.read(origin.url)
        assert evidence.sources == ()
        assert "its server answered 503" in evidence.notes[0]


async def test_a_bare_304_keeps_the_lifetime_of_its_page() -> None:
    async with serving() as origin, working() as worker:
        origin.headers = {"Cache-Control": "max-age=0", "ETag": '"v1"'}
        await worker.read(origin.url)
        origin.headers = {"ETag": '"v1"'}
        for _ in range(3):
            assert (await worker.read(origin.url)).sources[0].passages == (FACT,)
        assert len(origin.asked) == 4


async def test_tenants_share_nothing_where_an_internal_network_is_allowed(level: dict[str, Any]) -> None:
    async with serving() as origin, working(**level) as worker:
        for tenant in ("one", "two", "one", "two"):
            await worker.read(origin.url, tenant)
            await written()
        assert len(origin.asked) == 2


async def test_a_page_is_read_again_if_its_copy_is_older_than_the_job_allows(level: dict[str, Any]) -> None:
    enrichment = PATIENT.model_copy(update={"least_freshness_seconds": 0.0})
    async with serving() as origin, working(enrichment=enrichment, **level) as worker:
        for age, asked in ((None, 1), (3600.0, 1), (0.0, 2)):
            await worker.enricher.enrich(Sources(urls=[origin.url], freshness_seconds=age), QUESTION)
            await written()
            assert len(origin.asked) == asked
