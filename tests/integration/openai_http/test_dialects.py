"""The engine learns to omit a parameter that a model refuses; a job that sets this parameter itself is rejected."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from tests.integration.answering_worker import AnsweringWorker
from tests.integration.openai_http.servers import Server, answers, engine_at, says
from tests.integration.test_engine_contract import request
from workers.engines.base import RequestRejected

REASONING = {
    "max_tokens": ("unsupported_parameter", "Unsupported parameter: 'max_tokens' is not supported with this model."),
    "logprobs": ("unsupported_parameter", "Unsupported parameter: 'logprobs' is not supported with this model."),
    "temperature": ("unsupported_value", "Unsupported value: 'temperature' does not support 0.0 with this model."),
}
"""OpenAI's errors for a reasoning model, one parameter at a time."""


async def reasoning(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    for name, (code, message) in REASONING.items():
        if name in body:
            refused = {"message": message, "type": "invalid_request_error", "param": name, "code": code}
            return web.json_response({"error": refused}, status=400)
    return await says("yes")(request)


async def test_a_refused_parameter_of_ours_is_learned_once_and_costs_no_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An earlier worker rejected each job of a backlog for a parameter that the job did not set."""
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


async def test_a_temperature_that_the_job_names_is_the_job_s_fault_each_time() -> None:
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


@pytest.mark.parametrize(
    ("asked", "sent"),
    [({"sources": None}, None), ({}, 0), ({"temperature": 0.7}, 0.7), ({"sources": None, "temperature": 0}, 0)],
)
async def test_the_temperature_is_the_job_s_or_the_profile_s_or_the_model_s_own(
    asked: dict[str, Any], sent: float | None
) -> None:
    server = Server(says("yes"))
    async with engine_at(server) as engine, AnsweringWorker(engine=engine) as worker:
        assert (await worker.answer("Which bridge?", **asked)).outcome == "succeeded"
    assert server.bodies[0].get("temperature") == sent


async def test_the_reasoning_is_bounded_and_shown_apart_without_links_of_a_page() -> None:
    told = {"content": "It opened.", "reasoning_content": "See [it](https://bad.example/?q=1) first."}
    server = Server(answers(200, {"choices": [{"message": told, "finish_reason": "stop"}]}))
    asked: dict[str, Any] = {"reasoning": {"effort": "low", "max_tokens": 9}}
    async with engine_at(server) as engine, AnsweringWorker(engine=engine) as worker:
        answer = await worker.answer("When did it open?", **asked)
    assert (server.bodies[0]["reasoning_effort"], server.bodies[0]["thinking_token_budget"]) == ("low", 9)
    assert (answer.text or "").endswith("It opened.")
    assert answer.reasoning is not None
    assert "See" in answer.reasoning and "bad.example" not in answer.reasoning


async def test_a_job_that_asks_for_reasoning_is_rejected_by_a_model_that_cannot_reason() -> None:
    async with AnsweringWorker() as worker:
        refused = await worker.answer("Why?", sources=None, reasoning={"effort": "low"})
        plain = await worker.answer("Why?", sources=None, reasoning={"effort": "none"})
    assert (refused.outcome, plain.outcome) == ("rejected", "succeeded")
    assert refused.error is not None and refused.error.message.startswith("reasoning:")


@pytest.mark.parametrize("asked", [{}, {"temperature": 0.0}])
async def test_a_job_s_temperature_counts_as_its_own_where_it_names_one(asked: dict[str, Any]) -> None:
    async with engine_at(Server(reasoning)) as engine, AnsweringWorker(engine=engine) as worker:
        answer = await worker.answer("Which bridge?", sources=None, **asked)
    assert answer.outcome == ("rejected" if asked else "succeeded")
