"""The HTTP engine learns how many requests a server takes at once, from the server's counts or from its refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.integration.answering_worker import AnsweringWorker
from tests.integration.openai_http.servers import Respond, Server, answers, lists, problem, says
from tests.integration.openai_server import serving
from tests.integration.registry_rig import ASKED, rig, started
from tests.integration.test_engine_contract import request
from workers.engines.openai_http import OpenAIEngine, follow, server
from workers.engines.openai_http.limits import FIRST, QUEUE_LOOKS
from workers.engines.openai_http.settings import OpenAISettings
from workers.inference import generate

WORK_SECONDS = 0.02


class Refusing:
    """A server with this many places, which answers 429 to a request that finds none free."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.in_flight = self.answered = self.refused = 0
        self.seen: list[int] = []
        """For each answered request, the number of requests in flight just before its answer."""

    async def respond(self, asked: web.Request) -> web.StreamResponse:
        await asked.read()
        if self.in_flight >= self.places:
            self.refused += 1
            return await answers(429, problem("slow down"))(asked)
        self.in_flight += 1
        try:
            await asyncio.sleep(WORK_SECONDS)
            self.seen.append(self.in_flight)
        finally:
            self.in_flight -= 1
        self.answered += 1
        return await says("yes")(asked)


class Queueing:
    """A server with this many places and a queue, which reports its counts as vLLM does."""

    def __init__(self, places: int) -> None:
        self._places = asyncio.Semaphore(places)
        self.works = asyncio.Event()
        """While this event is cleared, the server answers no request."""
        self._registry = CollectorRegistry()
        self._running, self._waiting = (
            Gauge(f"vllm:num_requests_{state}", "A count.", ["model_name", "engine"], registry=self._registry).labels(
                "m1", "0"
            )
            for state in ("running", "waiting")
        )
        self.waiting = self.most_waiting = self.looks = 0
        self.keys: set[str | None] = set()

    async def respond(self, asked: web.Request) -> web.StreamResponse:
        await asked.read()
        self._count(1)
        async with self._places:
            self._count(-1)
            self._running.inc()
            await self.works.wait()
            await asyncio.sleep(WORK_SECONDS)
            self._running.dec()
        return await says("yes")(asked)

    def _count(self, difference: int) -> None:
        self.waiting += difference
        self.most_waiting = max(self.most_waiting, self.waiting)
        self._waiting.set(self.waiting)

    async def metrics(self, asked: web.Request) -> web.StreamResponse:
        self.looks += 1
        self.keys.add(asked.headers.get("Authorization"))
        return web.Response(body=generate_latest(self._registry))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(generate, "LONGEST_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.005)
    monkeypatch.setattr(follow, "LONGEST_PAUSE_SECONDS", 0.01)


@asynccontextmanager
async def engine_of(
    respond: Respond, metrics: Respond | None = None, shown: Metrics | None = None
) -> AsyncIterator[OpenAIEngine]:
    app = web.Application()
    app.router.add_get("/v1/models", Server(lists({"id": "m1"})).respond)
    app.router.add_post("/v1/chat/completions", respond)
    if metrics is not None:
        app.router.add_get("/metrics", metrics)
    async with serving(app) as url:
        settings = OpenAISettings.model_validate({"base_url": url, "model": "m1", "api_key": "sk-private"})
        engine = OpenAIEngine(settings, SystemClock(), shown or Metrics())
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_true():
            await asyncio.sleep(0.005)


def limit_shown(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("postback_engine_limit", {"engine": "openai"})


async def test_requests_in_flight_settle_near_the_places_of_a_server_that_refuses_more() -> None:
    """An earlier engine sent 256 requests at once, of which the server refused 248, again and again."""
    places, jobs, metrics = 8, 600, Metrics()
    few = Refusing(places)
    async with engine_of(few.respond, shown=metrics) as engine, AnsweringWorker(engine=engine) as worker:
        assert limit_shown(metrics) == FIRST
        asking = [asyncio.create_task(worker.answer("Which bridge?", sources=None)) for _ in range(jobs)]
        await until(lambda: few.answered >= jobs // 3)
        refused, limits = few.refused, list[float]()
        while few.answered < jobs * 9 // 10:
            limits.append(limit_shown(metrics) or 0)
            await asyncio.sleep(0.005)
        assert [result.outcome for result in await asyncio.gather(*asking)] == ["succeeded"] * jobs
    assert few.answered == jobs
    assert few.refused - refused < jobs // 5
    assert places / 4 <= median(limits) <= places + 1
    assert places / 4 <= median(few.seen[jobs // 3 :]) <= places
    assert limit_shown(metrics) == 0


async def test_a_server_that_refuses_nothing_soon_gets_as_many_requests_as_the_setting_allows() -> None:
    many = Refusing(10_000)
    async with engine_of(many.respond) as engine:
        asked = [request(f"r{number}") for number in range(600)]
        assert len(await asyncio.gather(*map(engine.generate, asked))) == 600
        assert engine.load().free == 256
    assert FIRST < max(many.seen) <= 256


async def learned(engine: OpenAIEngine, worker: AnsweringWorker, vllm: Queueing, places: int) -> None:
    """Let the engine learn the places from a long queue, and wait until the whole queue is answered."""
    await until(lambda: engine.load().free == 256)
    asking = [asyncio.create_task(worker.answer("Which bridge?", sources=None)) for _ in range(150)]
    await until(lambda: engine.load().running + engine.load().free == places)
    assert vllm.looks >= QUEUE_LOOKS
    vllm.works.set()
    assert {result.outcome for result in await asyncio.gather(*asking)} == {"succeeded"}
    assert (engine.load().running, engine.load().free) == (0, places)


async def test_a_server_that_tells_its_counts_gets_its_places_full_and_a_short_queue() -> None:
    """An earlier engine kept 248 requests waiting at the server, so newer and more urgent ones waited behind them."""
    places, vllm = 8, Queueing(8)
    async with engine_of(vllm.respond, vllm.metrics) as engine, AnsweringWorker(engine=engine) as worker:
        await learned(engine, worker, vllm, places)
        vllm.most_waiting = 0
        asking = [asyncio.create_task(worker.answer("Which bridge?", sources=None)) for _ in range(100)]
        await until(lambda: vllm.most_waiting > 0)
        assert (engine.load().running, engine.load().free) == (places, 0)
        assert {result.outcome for result in await asyncio.gather(*asking)} == {"succeeded"}
        assert vllm.most_waiting == 1
        assert vllm.keys == {"Bearer sk-private"}


async def never(asked: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def endless(asked: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(asked)
    while True:
        await response.write(b"vllm:num_requests_running 1\n" * 4096)


async def cut_off(asked: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(asked)
    await response.write(b"vllm:num_requests_running 1\n")
    assert asked.transport is not None
    asked.transport.close()
    return response


def page(body: bytes) -> Respond:
    async def respond(asked: web.Request) -> web.StreamResponse:
        return web.Response(body=body)

    return respond


@pytest.mark.parametrize(
    "metrics",
    [
        answers(401, problem("no key")),
        answers(500, {}),
        answers(302, {}, Location="http://127.0.0.1:1/metrics"),
        page(b"\xff\x00{}{}{}\n" * 100),
        page(b"vllm:num_requests_running{ 1\nvllm:num_requests_waiting} x\n"),
        page(b"vllm:num_requests_running NaN\nvllm:num_requests_waiting -1\n"),
        never,
        endless,
        cut_off,
    ],
    ids=["401", "500", "redirect", "noise", "malformed", "no counts", "never", "endless", "cut off"],
)
async def test_whatever_a_server_tells_instead_of_counts_its_jobs_are_answered_by_the_other_rule(
    metrics: Respond, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LOOK_TIMEOUT_SECONDS", 0.2)
    looked = 0

    async def counted(asked: web.Request) -> web.StreamResponse:
        nonlocal looked
        looked += 1
        return await metrics(asked)

    async with engine_of(Refusing(100).respond, counted) as engine:
        number = 0
        async with asyncio.timeout(60):
            while looked < 4:
                number += 1
                assert (await engine.generate(request(f"r{number}"))).text == "yes"
        assert engine.load().free == FIRST


async def test_a_server_that_no_longer_tells_its_counts_keeps_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOOK_TIMEOUT_SECONDS", 0.05)
    vllm, shown = Queueing(8), Metrics()
    is_silent, unanswered = False, 0

    async def metrics(asked: web.Request) -> web.StreamResponse:
        nonlocal unanswered
        unanswered += is_silent
        return await (never if is_silent else vllm.metrics)(asked)

    async with engine_of(vllm.respond, metrics, shown) as engine, AnsweringWorker(engine=engine) as worker:
        await learned(engine, worker, vllm, 8)
        assert limit_shown(shown) == 9
        is_silent = True
        async with asyncio.timeout(60):
            while unanswered <= follow.FAILED_LOOKS:
                assert (await worker.answer("Which bridge?", sources=None)).outcome == "succeeded"
        assert (engine.load().free, limit_shown(shown)) == (9, 9)


UNEQUAL = """
[engines.e]
kind = "openai"
addresses = [{a}, {b}]
attempts = 4
[models.m1]
engine = "e"
circuit = { failures = 1000, seconds = 1 }
"""


async def test_each_address_has_its_own_limit_and_gets_requests_in_its_proportion(tmp_path: Path) -> None:
    few, many = Refusing(2), Refusing(1000)
    async with (
        rig(tmp_path, a=Server(few.respond), b=Server(many.respond)) as around,
        started(around.engine(UNEQUAL)) as engine,
    ):
        asked = [replace(ASKED, request_id=f"r{number}") for number in range(400)]
        completions = await asyncio.gather(*map(engine.generate, asked))
        assert {completion.text for completion in completions} == {"yes"}
        later = few.answered, many.answered
        completions = await asyncio.gather(*map(engine.generate, asked))
        assert {completion.text for completion in completions} == {"yes"}
        assert few.answered - later[0] < (many.answered - later[1]) / 4
        assert few.answered + many.answered == 800
