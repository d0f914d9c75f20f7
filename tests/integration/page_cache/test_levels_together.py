"""The levels of the page cache together: Redis and the disk shared, damaged, down and invalidated."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from schemas.outcome import Outcome
from schemas.result import Result
from tests.integration.answering_worker import AnsweringWorker
from tests.integration.page_cache.workers import QUESTION, everything, serving, working, written
from tests.integration.raw_server import CLOCK, FACT
from tests.postback_command import environment_of, postback
from tests.redis_server import RedisServer
from workers.egress import EgressPolicy
from workers.enrichment.cache.disk import Disk
from workers.enrichment.cache.entry import Key
from workers.enrichment.cache.settings import CacheSettings


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


async def test_a_value_in_redis_that_is_no_entry_is_a_miss(redis: RedisServer, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"redis_url": redis.url, "redis_prefix": f"{tmp_path.name}:", "memory_bytes": 0}
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


async def test_a_damaged_file_is_replaced_by_an_empty_one(tmp_path: Path) -> None:
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


async def test_redis_keys_contain_nothing_of_a_url(redis: RedisServer, tmp_path: Path) -> None:
    from redis import Redis

    settings: dict[str, Any] = {"redis_url": redis.url, "redis_prefix": f"{tmp_path.name}:"}
    async with serving() as origin, working(**settings) as worker:
        await worker.read(f"{origin.url}?token=secret")
        await written()
    with Redis.from_url(redis.url) as client:
        keys = [key.decode() for key in client.scan_iter(f"{tmp_path.name}:*")]
    assert keys
    assert all(re.fullmatch(rf"{re.escape(tmp_path.name)}:[0-9a-f]+:[0-9a-f]{{64}}", key) for key in keys)


@pytest.mark.parametrize("what", [("{url}",), ("--host", "127.0.0.1")], ids=["url", "host"])
@pytest.mark.parametrize("shared", ["redis", "disk"])
async def test_a_page_that_an_operator_invalidates_is_read_again(
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
        (("https://a.example/",), "redis://127.0.0.1:1/0", 1, "redis: ConnectionError; nothing there is invalidated"),
    ],
)
def test_an_invalidation_that_cannot_be_written_is_reported(
    arguments: tuple[str, ...], redis_url: str | None, status: int, said: str
) -> None:
    env = environment_of(None, **({"POSTBACK_CACHE__REDIS_URL": redis_url} if redis_url else {}))
    done = postback("cache", "invalidate", *arguments, env=env)
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr
