"""An origin that counts its requests, and workers that read it through the page cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from schemas.job import Sources
from telemetry.metrics import Metrics
from tests.integration.raw_server import CLOCK, FACT, LOOPBACK, PATIENT
from tests.redis_server import RedisServer
from workers.egress import EgressPolicy, Guard
from workers.enrichment.cache.settings import CacheSettings
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Evidence
from workers.enrichment.settings import EnrichmentSettings

QUESTION = "When did the Halvorsen bridge open?"


class Origin:
    """A server with answers that a test sets, and a record of its requests."""

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
    """An enricher with a page cache, as in a worker."""

    def __init__(self, policy: EgressPolicy, settings: CacheSettings, enrichment: EnrichmentSettings) -> None:
        self.metrics = Metrics()
        self.enricher = Enricher(enrichment, Guard(policy), CLOCK, self.metrics, cache=settings)

    async def read(self, url: str, tenant: str = "default") -> Evidence:
        return await self.enricher.enrich(Sources(urls=[url]), QUESTION, tenant=tenant)

    def lookups(self, level: str, result: str) -> float:
        labels = {"level": level, "result": result}
        return self.metrics.registry.get_sample_value("postback_cache_lookups_total", labels) or 0.0


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


async def written() -> None:
    """Wait for pending writes to the cache's shared levels, for which no job waits."""
    while any(task.get_name() == "cache-put" for task in asyncio.all_tasks()):
        await asyncio.sleep(0.005)


def everything(redis: RedisServer, folder: Path) -> dict[str, Any]:
    return {"redis_url": redis.url, "redis_prefix": f"{folder.name}:", "disk_path": folder / "pages.sqlite"}
