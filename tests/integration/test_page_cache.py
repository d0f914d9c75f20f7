"""The caches of pages (in memory, in Redis and on disk: each level alone, and all together) and of robots.txt files."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from schemas.job import Sources
from schemas.outcome import Outcome
from schemas.result import Result
from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.aiohttp_server import serving as served
from tests.integration.answering_worker import AnsweringWorker
from tests.integration.raw_server import CLOCK, FACT, LOOPBACK, PATIENT, SLOW, saying, speaking
from tests.postback_command import environment_of, postback_here
from tests.readers_here import readers_here
from tests.redis_server import RedisServer
from workers.egress import EgressPolicy, Guard
from workers.enrichment.cache.entry import Key
from workers.enrichment.cache.levels import Disk
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Evidence, Unreadable
from workers.enrichment.fetching import robots
from workers.enrichment.fetching.fetch import Fetcher, Politeness
from workers.enrichment.fetching.robots import MAX_ROBOTS_BYTES, Robots
from workers.enrichment.processes.pool import Pool
from workers.enrichment.settings import CacheSettings, EnrichmentSettings
from workers.enrichment.turns import Asker

QUESTION = "When did the Halvorsen bridge open?"


class Origin:
    """A server with answers that a test sets, and a record of its requests."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.text = FACT
        self.asked: list[web.Request] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        if self.headers.get("ETag") is not None and request.headers.get("If-None-Match") == self.headers["ETag"]:
            return web.Response(status=304, headers=self.headers)
        text = f"<p>{self.text}</p>"
        return web.Response(text=text, content_type="text/html", status=self.status, headers=self.headers)


@asynccontextmanager
async def serving() -> AsyncIterator[Origin]:
    origin = Origin()
    app = web.Application()
    app.router.add_get("/{path:.*}", origin.answer)
    async with served(web.AppRunner(app, access_log=None)) as url:
        origin.url = f"{url}/page"
        yield origin


class Worker:
    """An enricher with a page cache, as in a worker."""

    def __init__(self, policy: EgressPolicy, settings: CacheSettings, enrichment: EnrichmentSettings) -> None:
        self.metrics = Metrics()
        self.enricher = Enricher(enrichment, Guard(policy), CLOCK, self.metrics, cache=settings)

    async def read(self, url: str, tenant: str = "default", **fields: Any) -> Evidence:
        """Return the evidence that a job gets from this page, after the cache's shared levels are written.

        No job waits for these writes, so a test has to.
        """
        evidence = await self.enricher.enrich(Sources(urls=[url], **fields), QUESTION, tenant=tenant)
        while any(task.get_name() == "cache-put" for task in asyncio.all_tasks()):
            await asyncio.sleep(0.005)
        return evidence

    def lookups(self, level: str, result: str) -> float:
        labels = {"level": level, "result": result}
        return self.metrics.registry.get_sample_value("postback_cache_lookups_total", labels) or 0.0


@asynccontextmanager
async def working(
    policy: EgressPolicy = LOOPBACK,
    enrichment: EnrichmentSettings = PATIENT,
    *,
    with_processes: bool = False,
    **settings: object,
) -> AsyncIterator[Worker]:
    """A worker that reads pages in this process, or in processes of its own; a slow disk is no failure of a level."""
    worker = Worker(policy, CacheSettings.model_validate({"answer_seconds": 5} | settings), enrichment)
    with nullcontext() if with_processes else readers_here():
        await worker.enricher.start()
        try:
            yield worker
        finally:
            await worker.enricher.close()


def everything(redis: RedisServer, folder: Path) -> dict[str, Any]:
    return {"redis_url": redis.url, "redis_prefix": f"{folder.name}:", "disk_path": folder / "pages.sqlite"}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["memory", "redis", "disk"])
def level(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Settings with one cache level only."""
    off = {"memory_bytes": 0}
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis")
        return {**off, "redis_url": server.url, "redis_prefix": f"{tmp_path.name}:"}
    return {**off, "disk_path": tmp_path / "pages.sqlite"} if request.param == "disk" else {}


async def test_a_page_and_its_absence_are_remembered_unless_the_page_may_not_be_stored(level: dict[str, Any]) -> None:
    async with serving() as origin, working(**level) as worker:
        for status, lifetime, asked in ((200, "max-age=600", 1), (404, "", 1), (200, "private, max-age=600", 3)):
            origin.status, origin.headers, url = status, {"Cache-Control": lifetime}, f"{origin.url}/{len(lifetime)}"
            origin.asked.clear()
            for _ in range(3):
                evidence = await worker.read(url)
                assert [source.passages for source in evidence.sources] == ([(FACT,)] if status == 200 else [])
                assert status == 200 or "its server answered 404" in evidence.notes[0]
            assert len(origin.asked) == asked


async def test_many_jobs_read_a_page_once() -> None:
    async with serving() as origin, working() as worker:
        found = await asyncio.gather(*(worker.read(origin.url) for _ in range(20)))
        assert all(len(evidence.sources) == 1 for evidence in found)
        assert len(origin.asked) == 1


async def test_an_older_copy_is_served_and_labelled_while_its_server_is_away(level: dict[str, Any]) -> None:
    async with serving() as origin, working(**level) as worker:
        origin.headers = {"Cache-Control": "max-age=0"}
        await worker.read(origin.url)
        origin.status = 503
        for _ in range(2):
            evidence = await worker.read(origin.url)
            assert evidence.sources[0].passages == (FACT,)
            assert evidence.notes == (f"source 1 ({origin.url[:-5]}) is an older copy: its server answered 503",)
        assert len(origin.asked) == 2  # the loop's second read reused the first read's 503


async def test_an_older_copy_is_served_where_its_server_cannot_say_whether_it_may_be_read(tmp_path: Path) -> None:
    obedient = PATIENT.model_copy(update={"robots": True})
    async with serving() as origin:
        origin.headers = {"Cache-Control": "max-age=0"}
        async with working(enrichment=obedient, disk_path=tmp_path / "pages.sqlite") as worker:
            assert len((await worker.read(origin.url)).sources) == 1
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
        origin.text = SLOW.decode()
        async with working(enrichment=hasty, with_processes=True, **settings) as busy:
            for _ in range(2):
                older, none = await busy.read(origin.url), await busy.read(f"{origin.url}/other")
        assert older.sources[0].passages == (FACT,)
        assert any("is an older copy: reading it took more than 1 s" in note for note in older.notes)
        assert "was left out: reading it took more than 1 s" in none.notes[0]
        assert len(origin.asked) == 3
        origin.text = "The Halvorsen bridge opened in 1988."
        async with working(**settings) as other:
            for path in ("", "/other"):
                evidence = await other.read(f"{origin.url}{path}")
                assert (evidence.sources[0].passages, evidence.notes) == ((origin.text,), ())


@pytest.mark.parametrize(("lifetime", "status"), [("max-age=0", 410), ("no-cache", 503)])
async def test_a_page_that_is_gone_or_has_no_cache_is_not_served_from_an_older_copy(lifetime: str, status: int) -> None:
    async with serving() as origin, working() as worker:
        origin.headers = {"Cache-Control": lifetime}
        await worker.read(origin.url)
        origin.status, origin.headers = status, {}
        evidence = await worker.read(origin.url)
        assert evidence.sources == ()
        assert f"its server answered {status}" in evidence.notes[0]


async def test_a_page_that_has_not_changed_is_not_read_again_and_a_bare_304_keeps_its_lifetime(
    level: dict[str, Any],
) -> None:
    async with serving() as origin, working(**level) as worker:
        for lifetime in ("max-age=0", "no-cache"):
            url, tag = f"{origin.url}/{lifetime}", f'"{lifetime}"'
            origin.text, origin.headers = FACT, {"Cache-Control": lifetime, "ETag": tag}
            origin.asked.clear()
            await worker.read(url)
            origin.text, origin.headers = "This would be something else.", {"ETag": tag}
            for _ in range(2):
                evidence = await worker.read(url)
                assert (evidence.sources[0].passages, evidence.notes) == ((FACT,), ())
            assert [request.headers.get("If-None-Match") for request in origin.asked] == [None, tag, tag]


async def test_tenants_share_nothing_where_an_internal_network_is_allowed(level: dict[str, Any]) -> None:
    async with serving() as origin, working(**level) as worker:
        for tenant in ("one", "two", "one", "two"):
            await worker.read(origin.url, tenant)
        assert len(origin.asked) == 2


async def test_a_page_is_read_again_if_its_copy_is_older_than_the_job_allows(level: dict[str, Any]) -> None:
    enrichment = PATIENT.model_copy(update={"least_freshness_seconds": 0.0})
    async with serving() as origin, working(enrichment=enrichment, **level) as worker:
        for age, asked in ((None, 1), (3600.0, 1), (0.0, 2)):
            await worker.read(origin.url, freshness_seconds=age)
            assert len(origin.asked) == asked


async def test_workers_share_redis_and_a_restarted_one_has_its_disk(redis: RedisServer, tmp_path: Path) -> None:
    async with serving() as origin:
        async with working(**everything(redis, tmp_path)) as first:
            await first.read(origin.url)
            await first.read(origin.url)
            assert (first.lookups("memory", "hit"), first.lookups("redis", "miss")) == (1, 1)
        async with working(**everything(redis, tmp_path)) as second:
            await second.read(origin.url)
            await second.read(origin.url)
            assert (second.lookups("redis", "hit"), second.lookups("memory", "hit")) == (1, 1)
        async with working(disk_path=tmp_path / "pages.sqlite") as third:
            await third.read(origin.url)
            assert (third.lookups("disk", "hit"), third.lookups("memory", "miss")) == (1, 1)
        assert len(origin.asked) == 1


async def test_redis_killed_and_restarted_under_load_fails_no_job(tmp_path: Path) -> None:
    settings = CacheSettings.model_validate({"pause_seconds": 0.05, "memory_bytes": 0})
    with RedisServer(tmp_path) as own:
        settings = settings.model_copy(update={"redis_url": SecretStr(own.url)})
        async with serving() as origin, AnsweringWorker(settings) as worker:
            results: list[Result] = []

            async def jobs(number: int) -> None:
                while True:
                    results.append(await worker.answer(QUESTION, f"{origin.url}/{number}/{len(results) % 40}"))

            async def more(what: Callable[[], float], by: int = 1) -> None:
                before = what()
                while what() < before + by:
                    await asyncio.sleep(0.01)
                    assert not any(job.done() for job in load)

            def served() -> float:
                return worker.cache_lookups("redis", "miss") + worker.cache_lookups("redis", "hit")

            load = [asyncio.create_task(jobs(number)) for number in range(4)]
            async with asyncio.timeout(60):
                for _ in range(2):
                    await more(served)
                    own.kill()
                    await more(lambda: worker.cache_lookups("redis", "away"))
                    await more(lambda: len(results), by=20)
                    own.start()
                await more(served)
            for job in load:
                job.cancel()
            await asyncio.gather(*load, return_exceptions=True)
    assert {(result.outcome, tuple(result.notes)) for result in results} == {(Outcome.SUCCEEDED, ())}
    assert all(FACT in (result.text or "") for result in results)


async def test_a_redis_and_a_folder_that_are_not_there_cost_no_job(tmp_path: Path) -> None:
    nobody, nowhere = RedisServer(tmp_path), Path("/proc/none/pages.sqlite")
    async with serving() as origin, working(redis_url=nobody.url, disk_path=nowhere, memory_bytes=0) as worker:
        for _ in range(2):
            assert len((await worker.read(origin.url)).sources) == 1
        assert worker.lookups("redis", "away") > 0


async def test_redis_keys_contain_nothing_of_a_url_and_a_value_that_is_no_entry_is_a_miss(
    redis: RedisServer, tmp_path: Path
) -> None:
    from redis import Redis

    settings = {**everything(redis, tmp_path), "disk_path": None, "memory_bytes": 0}
    with Redis.from_url(redis.url) as client:
        async with serving() as origin, working(**settings) as worker:
            await worker.read(f"{origin.url}?token=secret")
            keys = list(client.scan_iter(f"{tmp_path.name}:*"))
            assert keys
            form = rf"{re.escape(tmp_path.name)}:[0-9a-f]+:[0-9a-f]{{64}}"
            assert all(re.fullmatch(form, key.decode()) for key in keys)
            for key in keys:
                client.set(key, b"\x78\x9cnonsense")
            assert len((await worker.read(f"{origin.url}?token=secret")).sources) == 1
            assert worker.lookups("redis", "error") == 1
            assert len(origin.asked) == 2


async def test_a_damaged_file_is_replaced_by_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "pages.sqlite"
    path.write_bytes(b"this is no database" * 1000)
    async with serving() as origin, working(disk_path=path, memory_bytes=0, pause_seconds=0.01) as worker:
        for _ in range(3):
            assert len((await worker.read(origin.url)).sources) == 1
            await asyncio.sleep(0.02)
        assert len(origin.asked) <= 2
        assert worker.lookups("disk", "hit") >= 1


async def test_the_file_stays_within_its_size_and_evicts_the_least_recently_used_entry(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "pages.sqlite", CacheSettings(disk_bytes=1024 * 1024), CLOCK)
    for number in range(129):
        await disk.put(Key("public", str(number)), b"x" * 100_000, 60.0)
    kept = [number for number in range(129) if await disk.get(Key("public", str(number))) is not None]
    await disk.close()
    assert kept == list(range(119, 129))


async def test_a_page_that_is_not_allowed_any_more_is_not_served(redis: RedisServer, tmp_path: Path) -> None:
    settings = everything(redis, tmp_path)
    async with serving() as origin:
        async with working(**settings) as worker:
            assert len((await worker.read(origin.url)).sources) == 1
        async with working(EgressPolicy(), **settings) as stricter:
            assert (await stricter.read(origin.url)).sources == ()


@pytest.mark.parametrize("what", [("{url}",), ("--host", "127.0.0.1")], ids=["url", "host"])
@pytest.mark.parametrize("shared", ["redis", "disk"])
async def test_a_page_that_an_operator_invalidates_is_read_again(
    what: tuple[str, ...], shared: str, redis: RedisServer, tmp_path: Path
) -> None:
    settings = {name: value for name, value in everything(redis, tmp_path).items() if name.startswith(shared)}
    env = environment_of(None, **{f"POSTBACK_CACHE__{name.upper()}": str(value) for name, value in settings.items()})
    async with serving() as origin, working(**settings, pause_seconds=0.01) as worker:
        await worker.read(origin.url)
        arguments = [part.format(url=origin.url) for part in what]
        done = await asyncio.to_thread(postback_here, "cache", "invalidate", *arguments, env=env)
        assert done.returncode == 0, done.stderr
        await asyncio.sleep(0.02)
        origin.text = "The Halvorsen bridge opened in 1988."
        evidence = await worker.read(origin.url)
        assert evidence.sources[0].passages == (origin.text,)
        assert len(origin.asked) == 2


@pytest.mark.parametrize(
    ("arguments", "redis_url", "status", "said"),
    [
        (("https://a.example/",), None, 2, "POSTBACK_CACHE__REDIS_URL"),
        ((), "redis://127.0.0.1:1/0", 2, "--host"),
        (("nothing",), "redis://127.0.0.1:1/0", 2, "http://"),
        (("http://[",), "redis://127.0.0.1:1/0", 2, "cannot be read"),
        (("http://",), "redis://127.0.0.1:1/0", 2, "cannot be read"),
        (("--host", "a/b"), "redis://127.0.0.1:1/0", 2, "no host"),
        (("https://a.example/",), "redis://127.0.0.1:1/0", 1, "redis: ConnectionError; nothing there is invalidated"),
    ],
)
def test_an_invalidation_that_cannot_be_written_is_reported(
    arguments: tuple[str, ...], redis_url: str | None, status: int, said: str
) -> None:
    env = environment_of(None, **({"POSTBACK_CACHE__REDIS_URL": redis_url} if redis_url else {}))
    done = postback_here("cache", "invalidate", *arguments, env=env)
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr


# -- robots.txt ----------------------------------------------------------------------------------------------------


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
