"""The HTTP engine: its requests, and its outcome for each kind of answer."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
from typing import Any

import pytest
from aiohttp import web

from schemas.job import Message, ResponseFormat
from tests.integration.openai_http.servers import KEY, Server, answers, engine_at, problem, says
from tests.integration.test_engine_contract import request
from workers.engines.base import EngineFailed, EngineUnavailable, RequestRejected
from workers.engines.openai_http.answers import MAX_REASON_CHARACTERS


async def test_the_server_reads_each_field_of_a_request() -> None:
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


@pytest.mark.parametrize("family", ["deepseek-r1", None])
async def test_the_family_of_the_settings_separates_the_reasoning_of_a_model_with_another_name(
    family: str | None,
) -> None:
    async with engine_at(Server(says("Since.</think>Yes.")), family=family) as engine:
        completion = await engine.generate(request())
    expected = ("Yes.", "Since.") if family is not None else ("Since.</think>Yes.", None)
    assert (completion.text, completion.reasoning) == expected


async def test_parameters_that_not_every_server_understands_are_not_sent_unasked() -> None:
    server = Server(says("yes"))
    async with engine_at(server, log_probabilities=False) as engine:
        await engine.generate(request(priority=4))
    assert sorted(server.bodies[0]) == ["max_tokens", "messages", "model", "temperature"]


async def test_the_server_decides_about_the_sampling_that_no_job_and_no_profile_sets() -> None:
    server = Server(says("yes"))
    async with engine_at(server, log_probabilities=False) as engine:
        await engine.generate(request(temperature=None, temperature_is_default=True))
    assert sorted(server.bodies[0]) == ["max_tokens", "messages", "model"]


async def test_a_raw_prompt_goes_to_completions_and_any_other_is_a_message_of_the_user() -> None:
    server = Server(says("yes"), answers(200, {"choices": [{"text": " so", "finish_reason": "stop"}]}))
    async with engine_at(server) as engine:
        await engine.generate(request(prompt="It is"))
        completion = await engine.generate(request("raw", prompt="It is", is_raw=True))
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "It is"}]
    assert (server.bodies[1]["prompt"], completion.text) == ("It is", " so")
    assert "messages" not in server.bodies[1]


async def test_a_raw_prompt_is_rejected_where_the_server_takes_chats_only() -> None:
    async with engine_at(Server(answers(404, {}), answers(404, problem("no such model", "model")))) as engine:
        with pytest.raises(RequestRejected, match="raw: the server has no /completions"):
            await engine.generate(request(is_raw=True))
        with pytest.raises(EngineUnavailable, match="must name one of its models"):
            await engine.generate(request(is_raw=True))
    async with engine_at(Server(answers(404, {})), api="completions") as engine:
        with pytest.raises(EngineUnavailable, match="answered 404 to completions"):
            await engine.generate(request(is_raw=True))


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


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert len(rejected.value.reason) <= MAX_REASON_CHARACTERS


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
async def test_a_failure_that_may_pass_is_tried_again(status: int) -> None:
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
async def test_a_job_fails_at_once_if_the_server_asks_for_a_wait_beyond_its_deadline(after: str) -> None:
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


async def test_an_answer_is_read_up_to_a_limit_on_its_unpacked_bytes() -> None:
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
