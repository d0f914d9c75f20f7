"""The HTTP engine against servers that answer in every way a server can."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from devkit.model import tiny_model
from schemas.codec import read_result
from schemas.job import Message, ResponseFormat
from schemas.result import ResultError
from telemetry.clock import SystemClock
from tests.integration.answering_worker import TOPICS, AnsweringWorker
from tests.integration.openai_server import serving
from tests.integration.raw_server import FACT, HTML, page, saying, speaking
from tests.integration.test_engine_contract import busy, request
from workers.engines import openai_http
from workers.engines.base import EngineFailed, EngineRefused, EngineUnavailable, PromptTooLong, RequestRejected
from workers.engines.openai_http import OpenAIEngine
from workers.engines.settings import OpenAISettings, VllmSettings
from workers.enrichment.choosing.tokens import estimated_tokens
from workers.inference import engine_watch, generate
from workers.inference.ground import CUT_NOTE

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]
KEY = "sk-very-private"


class Server:
    """Answers the first request with the first response, and so on; the last one is for all that come after."""

    def __init__(self, *responses: Respond) -> None:
        self.responses = list(responses)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []

    async def respond(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json() if request.can_read_body else {})
        self.headers.append(request.headers.copy())
        respond = self.responses[min(len(self.bodies), len(self.responses)) - 1]
        return await respond(request)


def answers(status: int, body: Any, **headers: str) -> Respond:
    async def respond(request: web.Request) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(body, status=status, headers=named)

    return respond


def says(text: str, **choice: Any) -> Respond:
    message = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}
    return answers(200, {"choices": [message], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})


def lists(*models: dict[str, Any]) -> Respond:
    return answers(200, {"object": "list", "data": [{"object": "model", **model} for model in models]})


def problem(message: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}


@asynccontextmanager
async def engine_for(server: Server, models: Server | None = None, **settings: Any) -> AsyncIterator[OpenAIEngine]:
    """An engine that is not started. Its server lists m1, unless `models` says otherwise."""
    app = web.Application()
    app.router.add_get("/v1/models", (models or Server(lists({"id": "m1"}))).respond)
    app.router.add_post("/v1/chat/completions", server.respond)
    app.router.add_post("/v1/completions", server.respond)
    async with serving(app) as url:
        chosen = {"base_url": url, "model": "m1", "api_key": KEY, "attempts": 2, **settings}
        yield OpenAIEngine(OpenAISettings.model_validate(chosen), SystemClock())


@asynccontextmanager
async def engine_at(server: Server, models: Server | None = None, **settings: Any) -> AsyncIterator[OpenAIEngine]:
    async with engine_for(server, models, **settings) as engine:
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_http, "FIRST_WAIT_SECONDS", 0.01)


async def test_what_a_request_says_is_what_the_server_reads() -> None:
    server = Server(says("yes"))
    wanted = ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"schema": {"type": "object"}}})
    messages = (Message(role="system", content="Be brief."), Message(role="user", content="Is it?"))
    asked = request(prompt=None, messages=messages, seed=7, priority=4, response_format=wanted, stop=("\n",), top_p=0.9)
    async with engine_at(server, send_priority=True) as engine:
        await engine.generate(asked)
    assert server.bodies == [
        {
            "model": "m1",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}],
            "max_tokens": 8,
            "temperature": 0.0,
            "seed": 7,
            "top_p": 0.9,
            "stop": ["\n"],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
            },
            "logprobs": True,
            "priority": -4,
        }
    ]


async def test_what_not_every_server_understands_is_not_sent_unasked() -> None:
    server = Server(says("yes"))
    async with engine_at(server, log_probabilities=False) as engine:
        await engine.generate(request(priority=4))
    assert sorted(server.bodies[0]) == ["max_tokens", "messages", "model", "temperature"]


async def test_a_prompt_goes_to_completions_as_it_is() -> None:
    server = Server(answers(200, {"choices": [{"text": " so", "finish_reason": "length"}]}))
    async with engine_at(server, api="completions") as engine:
        completion = await engine.generate(request(prompt="It is"))
    assert server.bodies[0]["prompt"] == "It is"
    assert (completion.text, completion.finish_reason, completion.confidence) == (" so", "length", None)


async def test_the_confidence_is_the_geometric_mean_of_the_tokens_probabilities() -> None:
    tokens = [{"token": "y", "logprob": math.log(0.5)}, {"token": "es", "logprob": math.log(0.125)}]
    async with engine_at(Server(says("yes", logprobs={"content": tokens}))) as engine:
        completion = await engine.generate(request())
    assert completion.confidence == pytest.approx(0.25)


async def test_the_key_is_sent_and_is_in_no_error() -> None:
    server = Server(answers(401, problem("who are you?")))
    async with engine_at(server) as engine:
        with pytest.raises(EngineUnavailable) as failed:
            await engine.generate(request())
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(failed.value)


async def test_a_proxy_of_the_environment_is_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with engine_at(Server(says("yes"))) as engine:
        assert (await engine.generate(request())).text == "yes"


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_refused_request_is_rejected_in_the_server_s_words(status: int) -> None:
    async with engine_at(Server(answers(status, problem("too hot", "temperature")))) as engine:
        with pytest.raises(RequestRejected) as rejected:
            await engine.generate(request())
    assert (rejected.value.field, rejected.value.reason) == ("temperature", "too hot")


async def test_a_long_refusal_is_cut() -> None:
    async with engine_at(Server(answers(400, problem("no " * 10_000)))) as engine:
        with pytest.raises(RequestRejected) as rejected:
            await engine.generate(request())
    assert rejected.value.field == "prompt"
    assert len(rejected.value.reason) <= openai_http.MAX_REASON_CHARACTERS


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
async def test_what_may_pass_is_tried_again(status: int) -> None:
    server = Server(answers(status, problem("later")), says("yes"))
    async with engine_at(server) as engine:
        assert (await engine.generate(request())).text == "yes"
    assert len(server.bodies) == 2


async def test_the_attempts_are_bounded() -> None:
    server = Server(answers(503, problem("later")))
    async with engine_at(server, attempts=3) as engine:
        with pytest.raises(EngineUnavailable, match="503"):
            await engine.generate(request())
    assert len(server.bodies) == 3


@pytest.mark.parametrize("after", ["0", "Wed, 21 Oct 2015 07:28:00 GMT", "nonsense"])
async def test_retry_after_may_be_seconds_or_a_date(after: str) -> None:
    server = Server(answers(429, problem("later"), Retry_After=after), says("yes"))
    async with engine_at(server) as engine:
        assert (await engine.generate(request())).text == "yes"


@pytest.mark.parametrize("after", ["86400", "Wed, 21 Oct 2095 07:28:00 GMT"])
async def test_a_wait_beyond_the_deadline_is_not_waited_for(after: str) -> None:
    server = Server(answers(429, problem("later"), Retry_After=after), says("yes"))
    async with engine_at(server) as engine:
        with pytest.raises(EngineUnavailable, match="429"):
            await engine.generate(request())
    assert len(server.bodies) == 1


async def test_a_lost_connection_is_tried_again() -> None:
    async def hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    server = Server(hang_up, says("yes"))
    async with engine_at(server) as engine:
        assert (await engine.generate(request())).text == "yes"


async def test_a_redirect_is_never_followed() -> None:
    server = Server(answers(307, {}, Location="/v1/completions"), says("yes"))
    async with engine_at(server) as engine:
        with pytest.raises(EngineUnavailable, match="307"):
            await engine.generate(request())
    assert len(server.bodies) == 1


@pytest.mark.parametrize("body", [["not", "an", "answer"], {"choices": []}, {"choices": [{"message": 5}]}])
async def test_an_answer_in_another_form_is_no_answer(body: Any) -> None:
    async with engine_at(Server(answers(200, body))) as engine:
        with pytest.raises(EngineFailed, match="answer"):
            await engine.generate(request())


async def test_an_answer_is_read_up_to_a_limit_that_counts_what_is_unpacked() -> None:
    packed = gzip.compress(json.dumps({"choices": [{"text": " " * 1_000_000}]}).encode())

    async def bomb(request: web.Request) -> web.StreamResponse:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})

    assert len(packed) < 4096
    async with engine_at(Server(bomb), max_response_bytes=4096) as engine:
        with pytest.raises(RequestRejected, match="larger than this engine reads"):
            await engine.generate(request())


async def test_one_deadline_bounds_all_attempts() -> None:
    async def dawdle(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    async with engine_at(Server(dawdle), request_timeout_seconds=0.2) as engine:
        with pytest.raises(EngineFailed, match=r"within 0\.2 s"):
            await engine.generate(request())


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
    """It got 64, so that three quarters of its places stayed empty."""
    free, places = asyncio.Event(), VllmSettings().max_num_seqs

    async def when_free(request: web.Request) -> web.StreamResponse:
        await free.wait()
        return await says("yes")(request)

    server = Server(when_free)
    async with engine_at(server) as engine, asyncio.timeout(60):
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
            await OpenAIEngine(settings, SystemClock()).start()


# -- parameters that are ours ------------------------------------------------------------------------------------

REASONING = {
    "max_tokens": ("unsupported_parameter", "Unsupported parameter: 'max_tokens' is not supported with this model."),
    "logprobs": ("unsupported_parameter", "Unsupported parameter: 'logprobs' is not supported with this model."),
    "temperature": ("unsupported_value", "Unsupported value: 'temperature' does not support 0.0 with this model."),
}
"""What OpenAI says of a reasoning model, one parameter at a time."""


async def reasoning(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    for name, (code, message) in REASONING.items():
        if name in body:
            refused = {"message": message, "type": "invalid_request_error", "param": name, "code": code}
            return web.json_response({"error": refused}, status=400)
    return await says("yes")(request)


async def test_what_a_model_does_not_take_of_our_parameters_is_learned_once_and_costs_no_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each job of a backlog was rejected for what the job did not ask for."""
    server = Server(reasoning)
    async with engine_at(server, max_concurrency=1) as engine:
        for _ in range(3):
            assert (await engine.generate(request(temperature_is_default=True))).text == "yes"
    assert len(server.bodies) == 3 + 3
    assert server.bodies[-1].keys() == {"model", "messages", "max_completion_tokens"}
    assert server.bodies[-1]["max_completion_tokens"] == 8
    assert caplog.text.count("engine-parameter-refused") == 3


async def test_many_requests_at_once_learn_the_same_and_none_is_rejected(caplog: pytest.LogCaptureFixture) -> None:
    async with engine_at(Server(reasoning)) as engine:
        asked = (engine.generate(request(f"r{number}", temperature_is_default=True)) for number in range(20))
        assert {completion.text for completion in await asyncio.gather(*asked)} == {"yes"}
    assert caplog.text.count("engine-parameter-refused") == 3


async def test_a_temperature_that_the_job_itself_asks_for_is_its_own_fault_before_and_after() -> None:
    async with engine_at(Server(reasoning)) as engine:
        for asked_before in range(2):
            with pytest.raises(RequestRejected, match="temperature: Unsupported value"):
                await engine.generate(request(f"own-{asked_before}", temperature=0.7))
            await engine.generate(request(f"default-{asked_before}", temperature_is_default=True))


@pytest.mark.parametrize("param", ["max_tokens", "max_completion_tokens"])
async def test_a_number_of_tokens_that_is_too_large_is_the_job_s_fault_however_it_is_spelled(param: str) -> None:
    too_large = {"message": "max_tokens is too large", "param": param, "code": "invalid_value"}
    server = Server(answers(400, {"error": too_large}))
    async with engine_at(server) as engine:
        with pytest.raises(RequestRejected) as rejected:
            await engine.generate(request())
    assert (rejected.value.field, len(server.bodies)) == ("max_tokens", 1)


@pytest.mark.parametrize("asked", [{}, {"temperature": 0.0}])
async def test_a_job_s_temperature_counts_as_its_own_where_it_names_one(asked: dict[str, float]) -> None:
    async with engine_at(Server(reasoning)) as engine, AnsweringWorker(engine=engine) as worker:
        answer = await worker.answer("Which bridge?", sources=None, **asked)
    assert answer.outcome == ("rejected" if asked else "succeeded")


# -- one job that the server always fails at --------------------------------------------------------------------

POISON = "Which bridge is poisonous?"


def failing_at_one(how: Respond) -> Respond:
    """Answers at once, but for the poisonous question."""

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
        (gateway, "the server answered 504: it took longer than a gateway waits", 0),
        (never, "the server did not answer within 0.3 s", 0),
        (answers(200, {"choices": [], "usage": {"completion_tokens": 3}}), "the server's answer is not OpenAI's", 3),
    ],
    ids=["500", "504", "too slow", "unreadable"],
)
@pytest.mark.usefixtures("short_pauses")
async def test_a_job_that_the_server_always_fails_at_is_given_up_while_others_are_answered(
    how: Respond, why: str, wasted: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It was asked again for a day, held its partition's base, and nobody was told."""
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
    message = f"the engine failed at it 5 times while it answered others: {why}"
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
async def test_no_job_is_given_up_while_nobody_is_answered_or_the_server_only_asks_for_patience(
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
async def test_no_job_is_given_up_by_a_server_that_is_only_behind() -> None:
    """One place, first come first served, and a queue longer than what a request may take."""
    place = asyncio.Lock()

    async def slowly(request: web.Request) -> web.StreamResponse:
        async with place:
            await asyncio.sleep(0.05)
        return await says("That one.")(request)

    async with (
        engine_at(Server(slowly), request_timeout_seconds=0.3) as engine,
        AnsweringWorker(engine=engine) as worker,
        asyncio.timeout(120),
    ):
        answers_ = await asyncio.gather(*(worker.answer("Which bridge?", sources=None) for _ in range(60)))
    assert {answer.outcome for answer in answers_} == {"succeeded"}


# -- the key -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    ("key", "mend"),
    [(KEY, "POSTBACK_ENGINE__OPENAI__API_KEY is not a key that"), (None, "set POSTBACK_ENGINE__OPENAI__API_KEY")],
)
async def test_a_server_that_does_not_let_us_in_ends_the_start_with_the_setting_to_mend(
    status: int, key: str | None, mend: str
) -> None:
    models = Server(answers(status, problem(f"{KEY} is unknown")))
    async with engine_for(Server(says("yes")), models, api_key=key) as engine:
        with pytest.raises(EngineRefused, match=rf"127\.0\.0\.1:\d+ refuses .* \({status}\): {mend}") as refused:
            await engine.start()
    assert KEY not in str(refused.value)


async def test_a_key_that_is_refused_later_is_told_until_it_is_taken_again_and_the_jobs_are_answered_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_watch, "AWAY_SECONDS", 0.05)
    monkeypatch.setattr(generate, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(generate, "LONGEST_RETRY_SECONDS", 0.02)
    server = Server(answers(401, problem(f"{KEY} is unknown")))
    async with engine_at(server) as engine, AnsweringWorker(engine=engine) as worker:
        watch = worker.engine_watch
        answering = asyncio.create_task(worker.answer("Which bridge?", sources=None))
        async with asyncio.timeout(30):
            while not watch.reasons():
                await asyncio.sleep(0.01)
        [reason] = watch.reasons()
        assert reason.endswith(" s: the server refuses POSTBACK_ENGINE__OPENAI__API_KEY (401)")
        server.responses = [says("That one.")]
        assert (await answering).text == "That one."
        assert watch.reasons() == []
    assert len(server.bodies) > 2
    assert "POSTBACK_ENGINE__OPENAI__API_KEY (401)" in caplog.text
    assert KEY not in caplog.text


# -- the address and the model -------------------------------------------------------------------------------------

NO_MODEL = answers(404, {"error": {"message": "The model `m1` does not exist.", "param": "model", "code": 404}})
NO_PATH = answers(404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    "lacking", [NO_MODEL, NO_PATH, answers(400, problem("Invalid model name", "model"))], ids=["model", "path", "400"]
)
async def test_no_job_is_rejected_for_an_address_or_a_model_that_only_the_operator_can_mend(
    lacking: Respond, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each job that was asked meanwhile ended as `rejected`: one wrong setting cost a whole backlog."""
    monkeypatch.setattr(engine_watch, "AWAY_SECONDS", 0.05)
    monkeypatch.setattr(generate, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(generate, "LONGEST_RETRY_SECONDS", 0.02)
    server = Server(lacking)
    async with engine_at(server) as engine, AnsweringWorker(engine=engine) as worker:
        answering = asyncio.create_task(worker.answer("Which bridge?", sources=None))
        async with asyncio.timeout(30):
            while not worker.engine_watch.reasons():
                await asyncio.sleep(0.01)
        [reason] = worker.engine_watch.reasons()
        assert "POSTBACK_ENGINE__OPENAI__BASE_URL" in reason
        assert "POSTBACK_ENGINE__OPENAI__MODEL" in reason
        server.responses = [says("That one.")]
        assert (await answering).text == "That one."


async def test_a_model_that_the_server_has_not_ends_the_start_with_the_names_of_those_that_it_has() -> None:
    models = Server(lists({"id": "m2"}, {"id": "polite", "parent": "m2"}))
    async with engine_for(Server(NO_MODEL), models) as engine:
        with pytest.raises(EngineRefused, match=r"lists no m1 but m2, polite, and .*OPENAI__MODEL"):
            await engine.start()


async def test_an_address_without_the_path_of_the_api_ends_the_start_and_names_the_setting() -> None:
    server = Server(says("yes"))
    async with engine_for(server) as engine:
        url = engine._settings.base_url.removesuffix("/v1")
        lost = OpenAIEngine(OpenAISettings(base_url=url, model="m1"), SystemClock())
        with pytest.raises(EngineRefused, match=r"has no list of models, .* POSTBACK_ENGINE__OPENAI__BASE_URL"):
            await lost.start()
    assert server.bodies == []


@pytest.mark.parametrize("models", [NO_PATH, lists({"id": "m1:latest"}), lists({"id": "/models/m.gguf"})])
async def test_a_server_that_answers_to_a_name_which_it_does_not_list_is_good_enough(models: Respond) -> None:
    server = Server(answers(503, problem("loading")), says("yes"))
    async with engine_at(server, Server(models)) as engine:
        assert (await engine.generate(request())).text == "yes"
    assert [body["model"] for body in server.bodies] == ["m1"] * 3


async def test_a_model_s_adapter_is_a_model_of_the_server_too() -> None:
    server = Server(says("yes"))
    async with engine_at(server, Server(lists({"id": "m0"}, {"id": "m1", "parent": "m0"}))):
        assert server.bodies == []


async def test_a_key_that_is_asked_for_only_by_the_first_request_ends_the_start() -> None:
    async with engine_for(Server(answers(401, problem(f"{KEY} is unknown"))), Server(NO_PATH)) as engine:
        with pytest.raises(EngineRefused, match=r"POSTBACK_ENGINE__OPENAI__API_KEY \(401\)") as refused:
            await engine.start()
    assert KEY not in str(refused.value)


# -- the model's window --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "setting", "window"),
    [
        (lists({"id": "m2", "max_model_len": 100}, {"id": "m1", "max_model_len": 600}), None, 600),
        (lists({"id": "m0", "max_model_len": 600}, {"id": "m1", "max_model_len": None, "parent": "m0"}), None, 600),
        (lists({"id": "m1", "max_model_len": 600}), 500, 500),
        (lists({"id": "m1", "max_model_len": 600}), 8000, 600),
        (lists({"id": "m1"}), 500, 500),
        (lists({"id": "m1"}), None, None),
        (lists({"id": "m2", "max_model_len": 600}), None, None),
        (answers(200, {"data": "none"}), 500, 500),
        (answers(404, problem("no such path")), 500, 500),
    ],
)
async def test_the_window_is_what_the_server_says_of_its_model_or_the_setting(
    models: Respond, setting: int | None, window: int | None
) -> None:
    async with engine_at(Server(says("yes")), Server(models), context_tokens=setting) as engine:
        assert engine.context_tokens == window


async def test_a_list_of_models_that_is_too_long_to_read_says_nothing() -> None:
    models = lists({"id": "m1", "max_model_len": 600, "more": "x" * 10_000})
    async with engine_at(Server(says("yes")), Server(models), max_response_bytes=4096) as engine:
        assert engine.context_tokens is None


async def test_a_server_that_is_coming_up_is_waited_for_and_then_asked() -> None:
    models = Server(answers(503, problem("loading")), answers(502, {}), lists({"id": "m1", "max_model_len": 600}))
    async with engine_at(Server(says("yes")), models) as engine:
        assert engine.context_tokens == 600


async def test_max_tokens_beyond_a_window_that_is_known_do_not_reach_the_server() -> None:
    server = Server(says("yes"))
    async with engine_at(server, Server(lists({"id": "m1", "max_model_len": 600}))) as engine:
        with pytest.raises(RequestRejected) as rejected:
            await engine.generate(request(max_tokens=600))
    assert (rejected.value.field, server.bodies) == ("max_tokens", [])


async def test_sources_are_cut_to_the_server_s_window_and_what_is_said_of_them_is_not() -> None:
    """A vLLM server answers 400 to a prompt beyond its window, and the job was rejected for its sources."""
    long = "".join(f"<p>{FACT} It was mentioned in report {number}.</p>" for number in range(100))
    server, question = Server(says("In 1987 [1].")), "Which bridge opened in 1987?"
    models = Server(lists({"id": "m1", "max_model_len": 600}))
    async with (
        speaking(saying(page(long), HTML)) as origin,
        engine_at(server, models) as engine,
        AnsweringWorker(engine=engine) as worker,
    ):
        result = await worker.answer(question, f"{origin}/a", f"{origin}/b", max_tokens=100)
    [message] = server.bodies[0]["messages"]
    assert message["content"].startswith("Answer the question from the sources")
    assert message["content"].endswith(f"Question: {question}\nAnswer:")
    assert FACT in message["content"]
    assert estimated_tokens(message["content"]) <= 500
    assert (result.outcome, [source.title for source in result.source_details]) == ("succeeded", ["A bridge"])


TOO_LONG = (
    "This model's maximum context length is 600 tokens. However, your prompt contains at least 601 input tokens, which "
    "exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
)


def takes(characters: int) -> Respond:
    """A vLLM server with a small window, and a tokenizer that makes more of the text than was thought."""

    async def respond(request: web.Request) -> web.StreamResponse:
        [message] = (await request.json())["messages"]
        is_long = len(message["content"]) > characters
        return await (answers(400, problem(TOO_LONG, "input_tokens")) if is_long else says("In 1987 [1]."))(request)

    return respond


@pytest.mark.parametrize("characters", [1500, 900])
async def test_a_prompt_that_the_server_finds_too_long_is_asked_with_less_evidence(characters: int) -> None:
    long = "".join(f"<p>{FACT} It was mentioned in report {number}.</p>" for number in range(100))
    server, question = Server(takes(characters)), "Which bridge opened in 1987?"
    async with (
        speaking(saying(page(long), HTML)) as origin,
        engine_at(server) as engine,
        AnsweringWorker(engine=engine) as worker,
    ):
        result = await worker.answer(question, f"{origin}/a", f"{origin}/b")
    asked = [body["messages"][0]["content"] for body in server.bodies]
    assert len(asked) > 1
    assert sorted(asked, key=len, reverse=True) == asked
    assert all(one.startswith("Answer the question from the sources") and FACT in one for one in asked)
    assert all(one.endswith(f"Question: {question}\nAnswer:") for one in asked)
    assert (result.outcome, [source.title for source in result.source_details]) == ("succeeded", ["A bridge"])
    assert CUT_NOTE in result.notes


async def test_a_question_that_is_too_long_by_itself_is_rejected_in_the_server_s_words() -> None:
    async with (
        speaking(saying(page(), HTML)) as origin,
        engine_at(Server(takes(10))) as engine,
        AnsweringWorker(engine=engine) as worker,
    ):
        rejected = await worker.answer("Which bridge?", f"{origin}/a")
        failed = await worker.answer("Which bridge?", sources={"urls": [f"{origin}/a"], "required": True})
    assert rejected.error is not None
    assert (rejected.outcome, rejected.error.message) == ("rejected", f"prompt: {TOO_LONG}")
    assert (failed.outcome, failed.error and failed.error.code) == ("failed", "no_sources")


# -- a real server -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def vllm_server(log: Path) -> AsyncIterator[str]:
    """`vllm serve` with the tiny model, in a process group of its own so that all of it can be ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_model())]
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--served-model-name", "tiny"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, *options, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        await _healthy(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


async def _healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + 280
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < ends and server.poll() is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.5)
    pytest.fail(f"vLLM's server did not come up:\n{log.read_text()[-3000:]}")


@pytest.mark.vllm
@pytest.mark.timeout(400)
async def test_a_real_server_answers_refuses_and_is_aborted(tmp_path: Path) -> None:
    async with vllm_server(tmp_path / "server.log") as url:
        chat = OpenAIEngine(OpenAISettings(base_url=url, model="tiny"), SystemClock())
        plain = OpenAIEngine(OpenAISettings(base_url=url, model="tiny", api="completions"), SystemClock())
        stranger = OpenAIEngine(OpenAISettings(base_url=url, model="another"), SystemClock())
        try:
            for engine in (chat, plain):
                await engine.start()
            for engine in (chat, plain):
                completion = await engine.generate(request())
                assert completion.text
                assert (completion.completion_tokens, completion.finish_reason) == (8, "length")
                assert completion.confidence is not None
                assert 0.0 < completion.confidence < 1.0
            with pytest.raises(RequestRejected) as rejected:
                await chat.generate(request(max_tokens=5000))
            assert rejected.value.field in ("max_tokens", "prompt", "messages")
            assert (chat.context_tokens, plain.context_tokens) == (512, 512)
            for engine, words in itertools.product((chat, plain), (700, 20_000)):
                with pytest.raises(PromptTooLong):
                    await engine.generate(request(prompt="word " * words, is_whole=True))
            with pytest.raises(EngineRefused, match=r"lists no another but tiny, .* 404 to chat/completions"):
                await stranger.start()
            generating = asyncio.create_task(plain.generate(request("long", max_tokens=480)))
            await busy(plain, 1)
            await plain.abort("long")
            assert (await generating).finish_reason == "abort"
        finally:
            for engine in (chat, plain, stranger):
                await engine.close()
