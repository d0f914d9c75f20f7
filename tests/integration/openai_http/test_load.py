"""The HTTP engine at a server that is busy, has a backlog, or always fails at one job."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web

from schemas.codec import read_result
from schemas.result import ResultError
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.handlers import TOPICS
from tests.integration.answering_worker import AnsweringWorker
from tests.integration.openai_http.servers import Respond, Server, answers, engine_at, problem, says
from tests.integration.test_engine_contract import busy, request
from workers.engines.base import EngineUnavailable
from workers.engines.openai_http import OpenAIEngine
from workers.engines.openai_http.settings import OpenAISettings
from workers.inference import generate


async def test_an_abort_hangs_up_on_the_server() -> None:
    hung_up = asyncio.Event()

    async def dawdle(request: web.Request) -> web.StreamResponse:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            hung_up.set()
            raise
        return web.Response()

    async with engine_at(Server(dawdle)) as engine:
        generating = asyncio.create_task(engine.generate(request("r1")))
        await busy(engine, 1)
        await asyncio.sleep(0.1)
        await engine.abort("r1")
        assert (await generating).finish_reason == "abort"
        await asyncio.wait_for(hung_up.wait(), 10)


async def test_requests_beyond_the_server_s_places_wait_here() -> None:
    free = asyncio.Event()

    async def when_free(request: web.Request) -> web.StreamResponse:
        await free.wait()
        return await says("yes")(request)

    server = Server(when_free)
    async with engine_at(server, max_concurrency=2) as engine:
        generating = [asyncio.create_task(engine.generate(request(f"r{n}"))) for n in range(5)]
        async with asyncio.timeout(10):
            while len(server.bodies) < 2:
                await asyncio.sleep(0.01)
        assert (engine.load().running, engine.load().waiting) == (2, 3)
        assert len(server.bodies) == 2
        free.set()
        assert len(await asyncio.gather(*generating)) == 5


async def test_a_vllm_server_gets_as_many_requests_at_once_as_it_generates_unless_a_setting_says_otherwise() -> None:
    """In an earlier version the server got 64 requests, and three quarters of its places stayed empty."""
    free, places = asyncio.Event(), OpenAISettings().max_concurrency

    async def when_free(request: web.Request) -> web.StreamResponse:
        await free.wait()
        return await says("yes")(request)

    async def metrics(request: web.Request) -> web.StreamResponse:
        return web.Response(text=f"vllm:num_requests_running {len(server.bodies)}\nvllm:num_requests_waiting 0\n")

    server = Server(when_free)
    async with engine_at(server, metrics=metrics) as engine, asyncio.timeout(60):
        generating = [asyncio.create_task(engine.generate(request(f"r{n}"))) for n in range(places + 20)]
        while len(server.bodies) < places:
            await asyncio.sleep(0.01)
        assert (engine.load().running, engine.load().waiting) == (places, 20)
        free.set()
        assert len(await asyncio.gather(*generating)) == places + 20


async def test_a_server_that_never_comes_up_is_unavailable() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        origin = f"http://127.0.0.1:{closed.getsockname()[1]}"
        settings = OpenAISettings(base_url=f"{origin}/v1", model="m1", start_timeout_seconds=0.2)
        with pytest.raises(EngineUnavailable, match=f"at {origin} within 0.2 s; POSTBACK_ENGINE__OPENAI__BASE_URL"):
            await OpenAIEngine(settings, SystemClock(), Metrics()).start()


POISON = "Which bridge is poisonous?"


def failing_at_one(how: Respond) -> Respond:
    """A server that answers at once, except that the poisonous question gets the answer `how`."""

    async def respond(request: web.Request) -> web.StreamResponse:
        [message] = (await request.json())["messages"]
        return await (how if message["content"] == POISON else says("That one."))(request)

    return respond


async def never(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def gateway(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(0.2)
    return await answers(504, problem("the upstream takes too long"))(request)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(generate, "LONGEST_RETRY_SECONDS", 0.02)


@pytest.mark.parametrize(
    ("how", "why", "wasted"),
    [
        (answers(500, problem("CUDA error")), "the server answered 500", 0),
        (gateway, "the server answered 504: the request took longer than a gateway waits", 0),
        (never, "the server did not answer within 0.3 s", 0),
        (
            answers(200, {"choices": [], "usage": {"completion_tokens": 3}}),
            "the server's answer does not follow OpenAI's protocol",
            3,
        ),
    ],
    ids=["500", "504", "too slow", "unreadable"],
)
@pytest.mark.usefixtures("short_pauses")
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
@pytest.mark.usefixtures("short_pauses")
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


@pytest.mark.usefixtures("short_pauses")
async def test_no_job_is_given_up_because_its_server_has_a_backlog() -> None:
    """A server with one place serves requests in order, two within a timeout: the last job times out 6 times."""
    place = asyncio.Lock()

    async def slowly(request: web.Request) -> web.StreamResponse:
        async with place:
            await asyncio.sleep(0.4)
        return await says("That one.")(request)

    async with (
        engine_at(Server(slowly), request_timeout_seconds=1.0) as engine,
        AnsweringWorker(engine=engine) as worker,
        asyncio.timeout(120),
    ):
        answers_ = await asyncio.gather(*(worker.answer("Which bridge?", sources=None) for _ in range(14)))
    assert {answer.outcome for answer in answers_} == {"succeeded"}
