"""The cache of pages: three levels, one reading for all who wait, older copies where a server is away."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import SecretStr

from schemas.job import Sources
from schemas.result import Outcome, Result
from telemetry.metrics import Metrics
from tests.integration.answering_worker import AnsweringWorker
from tests.integration.raw_server import CLOCK, FACT, LOOPBACK, SLOW
from tests.postback_command import environment_of, postback
from tests.redis_server import RedisServer
from workers.egress import EgressPolicy, Guard
from workers.enrichment.cache.disk import Disk
from workers.enrichment.cache.entry import Key
from workers.enrichment.cache.settings import CacheSettings
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Evidence
from workers.enrichment.settings import EnrichmentSettings

QUESTION = "When did the Halvorsen bridge open?"


class Origin:
    """A server whose next answers a test decides. It counts what it is asked."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.text = FACT
        self.asked: list[web.Request] = []
        self.wait: Callable[[], Awaitable[object]] | None = None
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        if self.wait is not None:
            await self.wait()
        if self.headers.get("ETag") is not None and request.headers.get("If-None-Match") == self.headers["ETag"]:
            return web.Response(status=304, headers=self.headers)
        text = f"<p>{self.text}</p>"
        return web.Response(text=text, content_type="text/html", status=self.status, headers=self.headers)


@asynccontextmanager
async def serving() -> AsyncIterator[Origin]:
    origin = Origin()
    app = web.Application()
    app.router.add_get("/{path:.*}", origin.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    origin.url = f"http://127.0.0.1:{runner.addresses[0][1]}/page"
    try:
        yield origin
    finally:
        await runner.cleanup()


class Worker:
    """An enricher with a cache, as a worker has it."""

    def __init__(self, policy: EgressPolicy, settings: CacheSettings, enrichment: EnrichmentSettings) -> None:
        self.metrics = Metrics()
        self.enricher = Enricher(enrichment, Guard(policy), CLOCK, self.metrics, cache=settings)

    async def read(self, url: str, tenant: str = "default") -> Evidence:
        return await self.enricher.enrich(Sources(urls=[url]), QUESTION, tenant=tenant)

    def lookups(self, level: str, result: str) -> float:
        labels = {"level": level, "result": result}
        return self.metrics.registry.get_sample_value("postback_cache_lookups_total", labels) or 0.0


PATIENT = EnrichmentSettings(robots=False, budget_seconds=20, member_seconds=10)
"""For a machine that is busy with other tests."""


@asynccontextmanager
async def working(
    policy: EgressPolicy = LOOPBACK, enrichment: EnrichmentSettings = PATIENT, **settings: object
) -> AsyncIterator[Worker]:
    worker = Worker(policy, CacheSettings.model_validate(settings), enrichment)
    await worker.enricher.start()
    try:
        yield worker
    finally:
        await worker.enricher.close()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["memory", "redis", "disk"])
def level(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, object]:
    """Settings with one level only."""
    off = {"memory_bytes": 0}
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis")
        return {**off, "redis_url": server.url, "redis_prefix": f"{tmp_path.name}:"}
    return {**off, "disk_path": tmp_path / "pages.sqlite"} if request.param == "disk" else {}


# -- each level, alike --------------------------------------------------------------------


async def test_a_page_is_fetched_once_while_it_is_fresh(level: dict[str, object]) -> None:
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


async def test_that_a_page_is_missing_is_remembered(level: dict[str, object]) -> None:
    async with serving() as origin, working(**level) as worker:
        origin.status = 404
        for _ in range(3):
            evidence = await worker.read(origin.url)
            assert "its server answered 404" in evidence.notes[0]
            await written()
        assert len(origin.asked) == 1


async def test_a_page_that_may_not_be_stored_is_not() -> None:
    async with serving() as origin, working() as worker:
        origin.headers = {"Cache-Control": "private, max-age=600"}
        for _ in range(2):
            await worker.read(origin.url)
            await written()
        assert len(origin.asked) == 2


async def test_an_older_copy_is_served_where_its_server_is_away_and_said_to_be_one(level: dict[str, object]) -> None:
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
        assert len(origin.asked) == 2  # the second job heard of the first one's failure


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
    assert "is an older copy: whether its site lets us read it is unknown" in evidence.notes[0]
    assert other.sources == ()


async def test_an_older_copy_is_served_while_its_site_asks_to_be_left_alone() -> None:
    async with serving() as origin, working() as worker:
        origin.headers = {"Cache-Control": "max-age=0", "Retry-After": "600"}
        await worker.read(origin.url)
        origin.status = 429
        assert (await worker.read(f"{origin.url}/other")).sources == ()
        evidence = await worker.read(origin.url)
        assert evidence.sources[0].passages == (FACT,)
        assert "is an older copy: its site asks to be left alone" in evidence.notes[0]
        assert len(origin.asked) == 2


async def test_that_our_own_reader_was_slow_replaces_no_good_copy_and_is_told_to_no_other_worker(
    redis: RedisServer, tmp_path: Path
) -> None:
    hasty, settings = PATIENT.model_copy(update={"member_seconds": 1.0}), everything(redis, tmp_path)
    async with serving() as origin, working(enrichment=hasty, **settings) as busy:
        origin.headers = {"Cache-Control": "max-age=0"}
        await busy.read(origin.url)
        await written()
        origin.text = SLOW.decode()
        for _ in range(2):
            older, none = await busy.read(origin.url), await busy.read(f"{origin.url}/other")
            await written()
        assert older.sources[0].passages == (FACT,)
        assert "is an older copy: reading it took more than 1 s" in older.notes[0]
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


async def test_a_page_that_has_not_changed_is_not_read_again(level: dict[str, object]) -> None:
    async with serving() as origin, working(**level) as worker:
        origin.headers = {"Cache-Control": "max-age=0", "ETag": '"v1"'}
        await worker.read(origin.url)
        await written()
        origin.text = "This would be something else."
        evidence = await worker.read(origin.url)
        assert evidence.sources[0].passages == (FACT,)
        assert evidence.notes == ()
        assert [request.headers.get("If-None-Match") for request in origin.asked] == [None, '"v1"']


async def test_a_page_that_must_be_asked_for_again_is_not_served_late_and_its_copy_is_still_of_use() -> None:
    async with serving() as origin, working() as worker:
        origin.headers = {"Cache-Control": "no-cache", "ETag": '"v1"'}
        for _ in range(2):
            assert (await worker.read(origin.url)).sources[0].passages == (FACT,)
        assert [request.headers.get("If-None-Match") for request in origin.asked] == [None, '"v1"']
        origin.status, origin.headers = 503, {}
        evidence = await worker.read(origin.url)
        assert evidence.sources == ()
        assert "its server answered 503" in evidence.notes[0]


async def test_a_server_that_says_only_that_nothing_has_changed_leaves_how_long_its_page_is_good() -> None:
    async with serving() as origin, working() as worker:
        origin.headers = {"Cache-Control": "max-age=0", "ETag": '"v1"'}
        await worker.read(origin.url)
        origin.headers = {"ETag": '"v1"'}
        for _ in range(3):
            assert (await worker.read(origin.url)).sources[0].passages == (FACT,)
        assert len(origin.asked) == 4


async def written() -> None:
    """Let what is being written be written: a shared level is not waited for by the job that read the page."""
    while any(task.get_name() == "cache-put" for task in asyncio.all_tasks()):
        await asyncio.sleep(0.005)


# -- the levels together --------------------------------------------------------------------


def everything(redis: RedisServer, folder: Path) -> dict[str, object]:
    return {"redis_url": redis.url, "redis_prefix": f"{folder.name}:", "disk_path": folder / "pages.sqlite"}


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


async def test_a_redis_that_is_not_there_at_all_costs_no_job(tmp_path: Path) -> None:
    nobody = RedisServer(tmp_path)
    async with serving() as origin, working(redis_url=nobody.url, memory_bytes=0) as worker:
        for _ in range(2):
            assert len((await worker.read(origin.url)).sources) == 1
        assert worker.lookups("redis", "away") > 0


async def test_what_lies_in_redis_and_is_no_entry_is_a_miss(redis: RedisServer, tmp_path: Path) -> None:
    settings = {"redis_url": redis.url, "redis_prefix": f"{tmp_path.name}:", "memory_bytes": 0}
    async with serving() as origin, working(**settings) as worker:
        await worker.read(origin.url)
        await written()
        overwrite(redis, f"{tmp_path.name}:", b"\x78\x9cnonsense")
        assert len((await worker.read(origin.url)).sources) == 1
        assert worker.lookups("redis", "error") == 1
        assert len(origin.asked) == 2


def overwrite(redis: RedisServer, prefix: str, value: bytes) -> None:
    from redis import Redis

    with Redis.from_url(redis.url) as client:
        for key in client.scan_iter(f"{prefix}*:*"):
            client.set(key, value)


async def test_a_file_that_is_damaged_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "pages.sqlite"
    path.write_bytes(b"this is no database" * 1000)
    async with serving() as origin, working(disk_path=path, memory_bytes=0, pause_seconds=0.01) as worker:
        for _ in range(3):
            assert len((await worker.read(origin.url)).sources) == 1
            await written()
            await asyncio.sleep(0.02)
        assert len(origin.asked) <= 2
        assert worker.lookups("disk", "hit") >= 1


async def test_a_folder_that_cannot_be_written_costs_no_job() -> None:
    async with serving() as origin, working(disk_path=Path("/proc/none/pages.sqlite"), memory_bytes=0) as worker:
        assert len((await worker.read(origin.url)).sources) == 1


async def test_the_file_keeps_to_its_size_and_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "pages.sqlite", CacheSettings(disk_bytes=1024 * 1024), CLOCK)
    for number in range(129):
        await disk.put(Key("public", str(number)), b"x" * 100_000, 60.0)
    kept = [number for number in range(129) if await disk.get(Key("public", str(number))) is not None]
    await disk.close()
    assert kept == list(range(119, 129))


# -- who sees what --------------------------------------------------------------------


async def test_tenants_share_nothing_where_an_internal_network_is_allowed(level: dict[str, object]) -> None:
    async with serving() as origin, working(**level) as worker:
        for tenant in ("one", "two", "one", "two"):
            await worker.read(origin.url, tenant)
            await written()
        assert len(origin.asked) == 2


async def test_a_page_that_is_not_allowed_any_more_is_not_served(redis: RedisServer, tmp_path: Path) -> None:
    settings = everything(redis, tmp_path)
    async with serving() as origin:
        async with working(**settings) as worker:
            assert len((await worker.read(origin.url)).sources) == 1
        async with working(EgressPolicy(), **settings) as stricter:
            assert (await stricter.read(origin.url)).sources == ()


async def test_nothing_of_a_url_stands_in_redis_keys(redis: RedisServer, tmp_path: Path) -> None:
    from redis import Redis

    settings = {"redis_url": redis.url, "redis_prefix": f"{tmp_path.name}:"}
    async with serving() as origin, working(**settings) as worker:
        await worker.read(f"{origin.url}?token=secret")
        await written()
    with Redis.from_url(redis.url) as client:
        keys = [key.decode() for key in client.scan_iter(f"{tmp_path.name}:*")]
    assert keys
    assert all(re.fullmatch(rf"{re.escape(tmp_path.name)}:[0-9a-f]+:[0-9a-f]{{64}}", key) for key in keys)


# -- invalidation --------------------------------------------------------------------


@pytest.mark.parametrize("what", [("{url}",), ("--host", "127.0.0.1")], ids=["url", "host"])
@pytest.mark.parametrize("shared", ["redis", "disk"])
async def test_what_an_operator_invalidates_is_read_again(
    what: tuple[str, ...], shared: str, redis: RedisServer, tmp_path: Path
) -> None:
    settings = {name: value for name, value in everything(redis, tmp_path).items() if name.startswith(shared)}
    env = environment_of(None, **{f"POSTBACK_CACHE__{name.upper()}": str(value) for name, value in settings.items()})
    async with serving() as origin, working(**settings, pause_seconds=0.01) as worker:
        await worker.read(origin.url)
        await written()
        arguments = [part.format(url=origin.url) for part in what]
        done = await asyncio.to_thread(postback, "cache", "invalidate", *arguments, env=env)
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
        (("https://a.example/",), "redis://127.0.0.1:1/0", 1, "redis could not be told"),
    ],
)
def test_an_invalidation_that_cannot_be_told_says_so(
    arguments: tuple[str, ...], redis_url: str | None, status: int, said: str
) -> None:
    env = environment_of(None, **({"POSTBACK_CACHE__REDIS_URL": redis_url} if redis_url else {}))
    done = postback("cache", "invalidate", *arguments, env=env)
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr
