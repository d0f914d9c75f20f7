"""The HTTP engine learns how many requests a server takes at once, and gives up no job of a busy server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from schemas.codec import read_result
from schemas.result import ResultError
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.handlers import TOPICS
from tests.integration.answering_worker import AnsweringWorker
from tests.integration.openai_http.servers import KEY, Respond, Server, answers, engine_at, never, problem, says
from tests.integration.registry_rig import ASKED, rig, started
from tests.integration.test_engine_contract import request
from workers.engines.base import EngineUnavailable, small_request
from workers.engines.openai_http import create, server, slots
from workers.engines.openai_http.engine import HttpEngine
from workers.engines.openai_http.settings import OpenAISettings
from workers.engines.openai_http.slots import FIRST, QUEUE_LOOKS

WORK_SECONDS = 0.02
PROBE = small_request(request()).question


class Refusing:
    """A server with this many places, which answers 429 to a request that finds none free."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.in_flight = self.answered = self.refused = 0
        self.seen: list[int] = []
        """For each answered request, the number of requests in flight just before its answer."""

    async def respond(self, asked: web.Request) -> web.StreamResponse:
        is_probe = (await asked.json())["messages"][-1]["content"] == PROBE  # the engine's own, after long refusal
        if self.in_flight >= self.places:
            self.refused += not is_probe
            return await answers(429, problem("slow down"))(asked)
        if is_probe:
            return await says("yes")(asked)
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
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "LOOK_SECONDS", 0.005)
    monkeypatch.setattr(slots, "LONGEST_PAUSE_SECONDS", 0.01)


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
    async with engine_at(Server(few.respond), shown=metrics) as engine, AnsweringWorker(engine=engine) as worker:
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


async def learned(engine: HttpEngine, worker: AnsweringWorker, vllm: Queueing, places: int) -> None:
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
    async with (
        engine_at(Server(vllm.respond), metrics=vllm.metrics) as engine,
        AnsweringWorker(engine=engine) as worker,
    ):
        await learned(engine, worker, vllm, places)
        vllm.most_waiting = 0
        asking = [asyncio.create_task(worker.answer("Which bridge?", sources=None)) for _ in range(100)]
        await until(lambda: vllm.most_waiting > 0)
        assert (engine.load().running, engine.load().free) == (places, 0)
        assert {result.outcome for result in await asyncio.gather(*asking)} == {"succeeded"}
        assert vllm.most_waiting == 1
        assert vllm.keys == {f"Bearer {KEY}"}


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


async def noise(asked: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\xff\x00{}{}{}\n" * 100)


@pytest.mark.parametrize(
    "metrics",
    [
        answers(401, problem("no key")),
        answers(500, {}),
        answers(302, {}, Location="http://127.0.0.1:1/metrics"),
        noise,
        never,
        endless,
        cut_off,
    ],
    ids=["401", "500", "redirect", "noise", "never", "endless", "cut off"],
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

    async with engine_at(Server(Refusing(100).respond), metrics=counted) as engine:
        number = 0
        async with asyncio.timeout(60):
            while looked < 4:
                number += 1
                assert (await engine.complete(request(f"r{number}"))).text == "yes"
        assert engine.load().free == FIRST


async def test_a_server_that_no_longer_tells_its_counts_keeps_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOOK_TIMEOUT_SECONDS", 0.05)
    vllm, shown = Queueing(8), Metrics()
    is_silent, unanswered = False, 0

    async def metrics(asked: web.Request) -> web.StreamResponse:
        nonlocal unanswered
        unanswered += is_silent
        return await (never if is_silent else vllm.metrics)(asked)

    async with (
        engine_at(Server(vllm.respond), metrics=metrics, shown=shown) as engine,
        AnsweringWorker(engine=engine) as worker,
    ):
        await learned(engine, worker, vllm, 8)
        assert limit_shown(shown) == 9
        is_silent = True
        async with asyncio.timeout(60):
            while unanswered <= slots.FAILED_LOOKS:
                assert (await worker.answer("Which bridge?", sources=None)).outcome == "succeeded"
        assert (engine.load().free, limit_shown(shown)) == (9, 9)


UNEQUAL = """
[engines.e]
kind = "openai"
addresses = [{a}, {b}]
attempts = 4
[models.m1]
engine = "e"
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
        assert few.answered + many.answered >= 800  # small requests beside them find out whether `few` is away


async def test_an_abort_hangs_up_on_the_server() -> None:
    came, hung_up = asyncio.Event(), asyncio.Event()

    async def dawdle(asked: web.Request) -> web.StreamResponse:
        came.set()
        try:
            return await never(asked)
        finally:
            hung_up.set()

    async with engine_at(Server(dawdle)) as engine, asyncio.timeout(30):
        asked = request("r1")
        generating = asyncio.create_task(engine.complete(asked))
        await came.wait()
        asked.abort.ask()
        assert (await generating).finish_reason == "abort"
        await hung_up.wait()


@pytest.mark.parametrize(
    ("settings", "tells_counts", "places"),
    [({"max_concurrency": 2}, False, 2), ({}, True, OpenAISettings().max_concurrency)],
    ids=["a setting", "vLLM"],
)
async def test_requests_beyond_the_server_s_places_wait_here(
    settings: dict[str, Any], tells_counts: bool, places: int
) -> None:
    """In an earlier version a vLLM server got 64 requests, and three quarters of its places stayed empty."""
    free = asyncio.Event()

    async def when_free(asked: web.Request) -> web.StreamResponse:
        await free.wait()
        return await says("yes")(asked)

    async def metrics(asked: web.Request) -> web.StreamResponse:
        return web.Response(text=f"vllm:num_requests_running {len(busy_server.bodies)}\nvllm:num_requests_waiting 0\n")

    busy_server = Server(when_free)
    async with (
        engine_at(busy_server, metrics=metrics if tells_counts else None, **settings) as engine,
        asyncio.timeout(60),
    ):
        generating = [asyncio.create_task(engine.complete(request(f"r{n}"))) for n in range(places + 20)]
        await until(lambda: len(busy_server.bodies) >= places)
        assert (engine.load().running, engine.load().waiting, len(busy_server.bodies)) == (places, 20, places)
        free.set()
        assert len(await asyncio.gather(*generating)) == places + 20


async def test_a_server_that_never_comes_up_is_unavailable() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        origin = f"http://127.0.0.1:{closed.getsockname()[1]}"
        settings = OpenAISettings(base_url=f"{origin}/v1", model="m1", start_timeout_seconds=0.2)
        with pytest.raises(EngineUnavailable, match=f"at {origin} within 0.2 s; POSTBACK_ENGINE__OPENAI__BASE_URL"):
            await create(settings, Metrics(), SystemClock()).start()


POISON = "Which bridge is poisonous?"


def failing_at_one(how: Respond) -> Respond:
    """A server that answers at once, except that the poisonous question gets the answer `how`."""

    async def respond(request: web.Request) -> web.StreamResponse:
        [message] = (await request.json())["messages"]
        return await (how if message["content"] == POISON else says("That one."))(request)

    return respond


async def gateway(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(0.2)
    return await answers(504, problem("the upstream takes too long"))(request)


@pytest.mark.parametrize(
    ("how", "why", "wasted"),
    [
        (answers(500, problem("CUDA error")), "the server answered 500", 0),
        (gateway, "the server answered 504: the request took longer than a gateway waits", 0),
        (never, "the server did not answer within 0.3 s", 0),
        (
            answers(200, {"choices": [], "usage": {"completion_tokens": 3}}),
            "the answer has another form than its API describes",
            3,
        ),
    ],
    ids=["500", "504", "too slow", "unreadable"],
)
async def test_a_job_that_the_server_always_fails_at_is_given_up_while_others_are_answered(
    how: Respond, why: str, wasted: int, caplog: pytest.LogCaptureFixture
) -> None:
    """An earlier worker retried the job for a day. Its partition's base stood still, without a log line or metric."""
    server = Server(failing_at_one(how))
    async with (
        engine_at(server, request_timeout_seconds=0.3 if how is never else 60.0) as engine,
        AnsweringWorker(engine=engine) as worker,
        asyncio.timeout(60),
    ):
        poisonous = asyncio.create_task(worker.settled(POISON, sources=None))
        while not poisonous.done():
            assert (await worker.answer("Which bridge?", sources=None)).outcome == "succeeded"
            await asyncio.sleep(0.01)
    failed, letter = poisonous.result()
    result = read_result(failed.value)
    message = f"the engine failed at the job 5 times while it answered others: {why}"
    assert (result.outcome, result.error) == ("failed", ResultError(code="engine_error", message=message))
    headers = dict(letter.headers or ())
    assert (letter.topic, headers["reason"], headers["attempts"]) == (TOPICS.dead_letters, b"engine_error", b"5")
    asked = [body for body in server.bodies if body["messages"][0]["content"] == POISON]
    assert worker.tokens("wasted") == wasted * len(asked)
    assert "job-given-up" in caplog.text


@pytest.mark.parametrize(
    ("how", "outage"), [(answers(500, problem("CUDA error")), 500), (answers(429, problem("slow down")), None)]
)
async def test_no_job_is_given_up_while_no_job_is_answered_or_the_server_asks_for_a_pause(
    how: Respond, outage: int | None
) -> None:
    server = Server(answers(outage, problem("CUDA error")) if outage else failing_at_one(how))
    async with engine_at(server) as engine, AnsweringWorker(engine=engine) as worker, asyncio.timeout(60):
        waiting = asyncio.create_task(worker.answer(POISON, sources=None))
        others = [asyncio.create_task(worker.answer("Which bridge?", sources=None)) for _ in range(3)]
        while len(server.bodies) < 60:
            if outage is None:
                await worker.answer("Which bridge?", sources=None)
            await asyncio.sleep(0.01)
        assert not waiting.done()
        server.responses = [says("That one.")]
        assert {(await one).outcome for one in (waiting, *others)} == {"succeeded"}


async def test_no_job_is_given_up_because_its_server_has_a_backlog() -> None:
    """A server with one place serves requests in order, two within a timeout: the last job times out 6 times."""
    place = asyncio.Lock()

    async def slowly(request: web.Request) -> web.StreamResponse:
        async with place:
            await asyncio.sleep(0.16)
        return await says("That one.")(request)

    async with (
        engine_at(Server(slowly), request_timeout_seconds=0.4) as engine,
        AnsweringWorker(engine=engine) as worker,
        asyncio.timeout(120),
    ):
        answers_ = await asyncio.gather(*(worker.answer("Which bridge?", sources=None) for _ in range(14)))
    assert {answer.outcome for answer in answers_} == {"succeeded"}
